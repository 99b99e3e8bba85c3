"""GPU metrics through NVML: what each GPU does, how hot and fast it is, what slows it, what broke."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from types import ModuleType
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from harness.observe.nvml_library import DriverAway, VisibleDevices, open_nvml

log = logging.getLogger(__name__)

THROTTLE_MASKS = {
    "thermal_sw": 0x20,
    "thermal_hw": 0x40,
    "hw_slowdown": 0x8,
    "power_brake": 0x80,
    "power_cap": 0x4,
}
"""NVML's bits for clocks held down against the user's will. Idle (0x1) and set clocks (0x2) are none of them."""
LONGEST_SAMPLE_SECONDS = 10.0
"""Throttling is sampled; a sample stands for the time since the one before, but for no more than this."""

ENERGY_SECONDS = 30.0
"""Energy is asked for this seldom: it takes 3-5 ms of CPU on an H200, every other question 0.05 ms."""

Reading = tuple[str, tuple[str, ...], float]
"""Metric name, label values, value."""

GAUGES = {
    "harness_gpu_utilization_ratio": ("Share of time with a kernel running", ()),
    "harness_gpu_memory_used_bytes": ("Device memory in use", ()),
    "harness_gpu_temperature_celsius": ("Temperature of the GPU", ()),
    "harness_gpu_power_watts": ("Power drawn", ()),
    "harness_gpu_sm_clock_hertz": ("SM clock now", ()),
    "harness_gpu_sm_clock_max_hertz": ("Highest SM clock of this GPU", ()),
    "harness_gpu_remapped_rows": ("Remapped memory rows; pending and failure are 0 or 1", ("kind",)),
}
COUNTERS = {
    "harness_gpu_energy_joules_total": ("Energy used since the driver was loaded", ()),
    "harness_gpu_ecc_errors_total": ("Memory errors since the driver was loaded", ("kind",)),
    "harness_gpu_throttle_seconds_total": ("Time with clocks held down", ("reason",)),
}


@dataclass
class _Gpu:
    """What is remembered of one GPU between calls."""

    throttled: dict[str, float] = field(default_factory=lambda: dict.fromkeys(THROTTLE_MASKS, 0.0))
    sampled_at: float | None = None
    energy_at: float | None = None
    energy: float | None = None
    sm_max: float | None = None  # takes 1.5 ms to ask for, and never changes
    name: str | None = None
    uuid: str | None = None
    lost: bool = False


class GpuCollector:
    """Asks NVML about every GPU that the job may use. For `Background`: it samples throttling, and NVML can be slow.

    `visible_devices` is CUDA_VISIBLE_DEVICES (indices or UUIDs) or None for all. The `gpu` label is NVML's index.
    A GPU that is lost takes its series with it and is missing from harness_gpu_visible. What a driver or GPU does not
    support is absent. NVML's process list is never asked for: it takes
    milliseconds.
    """

    name = "gpu"

    def __init__(self, visible_devices: str | None = None) -> None:
        self._visible = VisibleDevices(visible_devices)
        self._nvml: ModuleType | None = None
        self._gpus: defaultdict[int, _Gpu] = defaultdict(_Gpu)
        self._away = False

    def collect(self) -> Iterable[Metric]:
        """Raises CollectorDisabled where there is no NVML. A driver that does not answer shows as no visible GPU."""
        visible = 0
        readings: list[Reading] = []
        names = InfoMetricFamily("harness_gpu", "Name and UUID", labels=["gpu"])
        for index, handle in self._devices():
            gpu = self._gpus[index]
            try:
                found = list(self._read(gpu, handle))
            except _Lost as error:
                self._lose(index, error)
                continue
            gpu.lost = False
            visible += 1
            readings += [(metric, (str(index), *labels), value) for metric, labels, value in found]
            names.add_metric([str(index)], {"name": gpu.name or "unknown", "uuid": gpu.uuid or "unknown"})
        yield GaugeMetricFamily("harness_gpu_visible", "GPUs of the job that answer", value=visible)
        yield from _families(readings)
        if names.samples:
            yield names

    def close(self) -> None:
        """Let go of the driver."""
        if self._nvml is not None:
            self._nvml.nvmlShutdown()
            self._nvml = None

    def _devices(self) -> Iterable[tuple[int, Any]]:
        """Index and handle of the job's GPUs; a GPU that gives no handle is left out. Empty while the driver is away."""
        if self._nvml is None:
            try:
                self._nvml = open_nvml()
            except DriverAway as error:
                if not self._away:
                    log.warning("no GPU can be seen: %s", error)
                self._away = True
                return
        nvml = self._nvml
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if (index, partial(nvml.nvmlDeviceGetUUID, handle)) in self._visible:
                    yield index, handle
            except nvml.NVMLError as error:
                self._lose(index, error)

    def _lose(self, index: int, error: Exception) -> None:
        gpu = self._gpus[index]
        if not gpu.lost:
            log.warning("GPU %d is lost: %s", index, error)
        self._gpus[index] = _Gpu(throttled=gpu.throttled, lost=True)  # another may come back in its place

    def _ask(self, function: str, *arguments: Any) -> Any:
        """What NVML says, or None where driver or GPU does not support the question. Raises _Lost."""
        nvml = self._nvml
        assert nvml is not None
        try:
            return getattr(nvml, function)(*arguments)
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_ERROR_GPU_IS_LOST, nvml.NVML_ERROR_RESET_REQUIRED):
                raise _Lost(str(error)) from error
            return None

    def _read(self, gpu: _Gpu, handle: Any) -> Iterable[Reading]:
        nvml = self._nvml
        assert nvml is not None
        if (rates := self._ask("nvmlDeviceGetUtilizationRates", handle)) is not None:
            yield "harness_gpu_utilization_ratio", (), rates.gpu / 100
        if (memory := self._ask("nvmlDeviceGetMemoryInfo", handle)) is not None:
            yield "harness_gpu_memory_used_bytes", (), memory.used
        for name, factor, question in (
            ("harness_gpu_temperature_celsius", 1.0, ("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU)),
            ("harness_gpu_power_watts", 1e-3, ("nvmlDeviceGetPowerUsage", handle)),
            ("harness_gpu_sm_clock_hertz", 1e6, ("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM)),
        ):
            if (value := self._ask(*question)) is not None:
                yield name, (), value * factor
        for kind, error_type in (
            ("corrected", nvml.NVML_MEMORY_ERROR_TYPE_CORRECTED),
            ("uncorrected", nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED),
        ):
            errors = self._ask("nvmlDeviceGetTotalEccErrors", handle, error_type, nvml.NVML_VOLATILE_ECC)
            if errors is not None:
                yield "harness_gpu_ecc_errors_total", (kind,), errors
        if (rows := self._ask("nvmlDeviceGetRemappedRows", handle)) is not None:
            for kind, count in zip(("correctable", "uncorrectable", "pending", "failure"), rows, strict=True):
                yield "harness_gpu_remapped_rows", (kind,), count
        yield from self._throttle(gpu, handle)
        yield from self._seldom(gpu, handle)

    def _throttle(self, gpu: _Gpu, handle: Any) -> Iterable[Reading]:
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if reasons is None:  # its name in drivers before 535
            reasons = self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        if reasons is None:
            return
        now = time.monotonic()
        elapsed = 0.0 if gpu.sampled_at is None else min(now - gpu.sampled_at, LONGEST_SAMPLE_SECONDS)
        gpu.sampled_at = now
        for reason, mask in THROTTLE_MASKS.items():
            if reasons & mask:
                gpu.throttled[reason] += elapsed
            yield "harness_gpu_throttle_seconds_total", (reason,), gpu.throttled[reason]

    def _seldom(self, gpu: _Gpu, handle: Any) -> Iterable[Reading]:
        """What is dear to ask for: the energy now and then, what never changes once."""
        now = time.monotonic()
        if gpu.energy_at is None or now - gpu.energy_at >= ENERGY_SECONDS:
            gpu.energy_at = now
            gpu.energy = self._ask("nvmlDeviceGetTotalEnergyConsumption", handle)
            assert self._nvml is not None
            if gpu.uuid is None:
                gpu.name, gpu.uuid = self._ask("nvmlDeviceGetName", handle), self._ask("nvmlDeviceGetUUID", handle)
                gpu.sm_max = self._ask("nvmlDeviceGetMaxClockInfo", handle, self._nvml.NVML_CLOCK_SM)
        if gpu.energy is not None:
            yield "harness_gpu_energy_joules_total", (), gpu.energy * 1e-3
        if gpu.sm_max is not None:
            yield "harness_gpu_sm_clock_max_hertz", (), gpu.sm_max * 1e6


class _Lost(Exception):
    """This GPU has fallen off the bus, or needs a reset."""


def _families(readings: list[Reading]) -> Iterable[Metric]:
    families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
    for name, labels, value in readings:
        if name not in families:
            kind = GaugeMetricFamily if name in GAUGES else CounterMetricFamily
            text, more = (GAUGES | COUNTERS)[name]
            families[name] = kind(name, text, labels=["gpu", *more])
        families[name].add_metric(labels, value)
    yield from families.values()
