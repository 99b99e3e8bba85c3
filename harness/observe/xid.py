"""Counts the GPUs' XID errors as NVML reports them, one event at a time: the same XID twice counts twice."""

import ctypes
import logging
import threading
import time
from collections.abc import Iterable
from functools import partial
from types import ModuleType
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from harness.observe.nvml_library import VisibleDevices, open_nvml

log = logging.getLogger(__name__)

WAIT_MILLISECONDS = 1000
RETRY_SECONDS = 5.0
NO_GPU_RETRY_SECONDS = 60.0


class XidCollector:
    """Listens in a thread of its own, so that an XID is seen even where NVML then hangs for everybody else.

    An XID has a series from its first event on; harness_gpu_xid_last_timestamp_seconds tells of the first one too, which
    an increase over a series that was not there before cannot.
    """

    name = "gpu_xid"

    def __init__(self, visible_devices: str | None = None) -> None:
        self._visible = VisibleDevices(visible_devices)
        self._events: dict[tuple[str, str], tuple[int, float]] = {}  # (gpu, xid) -> count, Unix time
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def collect(self) -> Iterable[Metric]:
        """Raises CollectorDisabled where there is no NVML, DriverAway while its driver does not answer."""
        if self._thread is None:
            nvml = open_nvml()
            self._thread = threading.Thread(target=self._listen, args=(nvml,), name="gpu-xid", daemon=True)
            self._thread.start()
        labels = ["gpu", "xid"]
        count = CounterMetricFamily("harness_gpu_xid_errors_total", "XID errors", labels=labels)
        last = GaugeMetricFamily("harness_gpu_xid_last_timestamp_seconds", "Unix time of the last one", labels=labels)
        with self._lock:
            events = dict(self._events)
        for label, (times, when) in sorted(events.items()):
            count.add_metric(label, times)
            last.add_metric(label, when)
        return count, last

    def close(self) -> None:
        """Stop listening."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * WAIT_MILLISECONDS / 1000)

    def _listen(self, nvml: ModuleType) -> None:
        while not self._stop.is_set():
            try:
                self._listen_until_error(nvml)
            except nvml.NVMLError as error:  # a GPU was lost: listen to the others
                log.warning("listening for XIDs again in %.0f s: %s", RETRY_SECONDS, error)
                self._stop.wait(RETRY_SECONDS)
        nvml.nvmlShutdown()

    def _listen_until_error(self, nvml: ModuleType) -> None:
        events = nvml.nvmlEventSetCreate()
        try:
            gpus = self._register(nvml, events)
            if not gpus:
                self._stop.wait(NO_GPU_RETRY_SECONDS)
            while gpus and not self._stop.is_set():
                try:
                    event = nvml.nvmlEventSetWait_v2(events, WAIT_MILLISECONDS)
                except nvml.NVMLError as error:
                    if error.value == nvml.NVML_ERROR_TIMEOUT:
                        continue
                    raise
                if event.eventType == nvml.nvmlEventTypeXidCriticalError:
                    self._count(gpus.get(_address(event.device), "unknown"), event.eventData)
        finally:
            nvml.nvmlEventSetFree(events)

    def _register(self, nvml: ModuleType, events: Any) -> dict[int | None, str]:
        """Ask for XIDs of every GPU that can tell of them. Returns handle address -> gpu label."""
        gpus: dict[int | None, str] = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                if (index, partial(nvml.nvmlDeviceGetUUID, handle)) in self._visible:
                    nvml.nvmlDeviceRegisterEvents(handle, nvml.nvmlEventTypeXidCriticalError, events)
                    gpus[_address(handle)] = str(index)
            except nvml.NVMLError as error:
                log.info("GPU %d can't tell of XIDs: %s", index, error)
        return gpus

    def _count(self, gpu: str, xid: int) -> None:
        log.warning("GPU %s reports XID %d", gpu, xid)
        with self._lock:
            times, _ = self._events.get((gpu, str(xid)), (0, 0.0))
            self._events[gpu, str(xid)] = (times + 1, time.time())


def _address(handle: Any) -> int | None:
    """NVML's device handles are pointers: the same GPU, the same address."""
    return ctypes.cast(handle, ctypes.c_void_p).value
