"""Asks NVML about this machine's GPUs: as many and as alike as the run needs, well, free, and with enough memory."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

from harness.config.schema import ClusterKind, RootConfig
from harness.model.memory import choose
from harness.observe.collector import CollectorDisabled
from harness.observe.nvml import THROTTLE_MASKS
from harness.observe.nvml_library import DriverAway, VisibleDevices, open_nvml
from harness.preflight.finding import Finding, Subject, skipped
from harness.text import bytes_text

HARMFUL = ("hw_slowdown", "thermal_sw", "thermal_hw", "power_brake")
"""Reasons for low clocks that mean a sick GPU or a hot room. The power cap is reached by every well used GPU."""
IDLE_BYTES = 2 << 30
"""Memory that driver and display take on a GPU that nobody computes on, with room."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as NVML describes it; None where the driver does not say."""

    index: int
    name: str
    total_bytes: int
    used_bytes: int
    throttled: tuple[str, ...]
    uncorrected_errors: int | None
    remap_pending: bool
    remap_failed: bool


def check_gpus(subject: Subject) -> Finding:
    """Problems are failures where the run would use these GPUs, warnings on a login node that happens to have some."""
    config = subject.config
    wanted = config.cluster.gpus_per_node
    if not wanted:
        return skipped("cluster.gpus_per_node=0, the run trains on CPU")
    would_train_here = config.cluster.kind is ClusterKind.local or "SLURM_JOB_ID" in os.environ
    try:
        gpus, problems = _survey(os.environ.get("CUDA_VISIBLE_DEVICES"))
    except (CollectorDisabled, DriverAway) as error:
        said = f"no GPU here: {error}"
        if would_train_here:
            return Finding(said, failures=(f"cluster.gpus_per_node={wanted}: {said}; run it where there are GPUs",))
        return Finding(
            f"skipped: {said}",
            warnings=(
                "nothing was seen of the GPUs; look on a node of the job: srun ... -m harness.preflight ... --only gpus,layout,resume",
            ),
        )
    problems += list(_problems(config, gpus, wanted))
    # an estimate from above: it warns and never fails
    tight = choose(config, min(gpu.total_bytes for gpu in gpus)).remark if gpus else None
    estimate = [tight] if tight else []
    names = ", ".join(dict.fromkeys(gpu.name for gpu in gpus)) or "none"
    return Finding(
        f"{len(gpus)} of {wanted} GPUs: {names}",
        failures=tuple(problems) if would_train_here else (),
        warnings=tuple(estimate) if would_train_here else (*problems, *estimate),
        facts={"gpus": [vars(gpu) for gpu in gpus]},
    )


def _problems(config: RootConfig, gpus: list[Gpu], wanted: int) -> Iterator[str]:
    if len(gpus) < wanted:
        yield f"cluster.gpus_per_node={wanted}: this machine shows {len(gpus)}; ask for fewer, or look at CUDA_VISIBLE_DEVICES"
    names = sorted({gpu.name for gpu in gpus})
    if len(names) > 1:
        yield f"GPUs of several types ({', '.join(names)}): every step would wait for the slowest; use one type"
    for gpu in gpus:
        who = f"GPU {gpu.index}"
        if gpu.throttled:
            yield f"{who} holds its clocks down ({', '.join(gpu.throttled)}): look at cooling and power, or exclude the node"
        if gpu.uncorrected_errors:
            yield f"{who} has had {gpu.uncorrected_errors} uncorrected memory errors: reset it, or exclude the node"
        if gpu.remap_pending:
            yield f"{who} waits for a reset to replace a bad memory row: reset it, or exclude the node"
        if gpu.remap_failed:
            yield f"{who} could not replace a bad memory row: have it exchanged, and exclude the node"
        if gpu.used_bytes > IDLE_BYTES:
            yield f"{who} has {bytes_text(gpu.used_bytes)} in use by other processes: end them (nvidia-smi lists them), or wait"


def _survey(visible: str | None) -> tuple[list[Gpu], list[str]]:
    """The visible GPUs, and those that do not answer. Raises CollectorDisabled or DriverAway."""
    nvml = open_nvml()
    try:
        gpus, problems, devices = [], [], VisibleDevices(visible)
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if (index, partial(nvml.nvmlDeviceGetUUID, handle)) in devices:
                    gpus.append(_describe(nvml, index, handle))
            except nvml.NVMLError as error:
                problems.append(f"GPU {index} does not answer ({error}): reset it or reboot, or exclude the node")
        return gpus, problems
    finally:
        nvml.nvmlShutdown()


def _describe(nvml: ModuleType, index: int, handle: Any) -> Gpu:
    """Raises NVMLError for a GPU that is lost."""
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    reasons = _ask(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:  # its name in drivers before 535
        reasons = _ask(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle) or 0
    _, _, pending, failed = _ask(nvml, "nvmlDeviceGetRemappedRows", handle) or (0, 0, 0, 0)
    return Gpu(
        index=index,
        name=nvml.nvmlDeviceGetName(handle),
        total_bytes=int(memory.total),
        used_bytes=int(memory.used),
        throttled=tuple(name for name in HARMFUL if reasons & THROTTLE_MASKS[name]),
        uncorrected_errors=_ask(
            nvml,
            "nvmlDeviceGetTotalEccErrors",
            handle,
            nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            nvml.NVML_VOLATILE_ECC,
        ),
        remap_pending=bool(pending),
        remap_failed=bool(failed),
    )


def _ask(nvml: ModuleType, function: str, *arguments: Any) -> Any:
    """What NVML says, or None where driver or GPU does not support the question."""
    try:
        return getattr(nvml, function)(*arguments)
    except nvml.NVMLError as error:
        if error.value in (nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_FUNCTION_NOT_FOUND):
            return None
        raise
