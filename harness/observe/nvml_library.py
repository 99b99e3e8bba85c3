"""NVML opened, and which of its GPUs belong to the job."""

import os
from collections.abc import Callable
from functools import partial
from types import ModuleType

from harness.observe.collector import CollectorDisabled


class DriverAway(Exception):
    """NVML is installed but its driver does not answer (not loaded, version mismatch, no permission)."""


def open_nvml() -> ModuleType:
    """The initialised pynvml. Raises CollectorDisabled where there is no NVML, DriverAway where it fails to start."""
    try:
        import pynvml  # here, since half of all agents run without a GPU and would pay its memory
    except ImportError as error:
        raise CollectorDisabled("nvidia-ml-py is not installed") from error
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        if error.value == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
            raise CollectorDisabled("no NVIDIA driver library (libnvidia-ml.so.1) on this machine") from error
        raise DriverAway(str(error)) from error
    return pynvml


class VisibleDevices:
    """The GPUs that CUDA_VISIBLE_DEVICES names, by index, UUID or the beginning of a UUID; None names all."""

    def __init__(self, value: str | None) -> None:
        entries = None if value is None else [entry.strip() for entry in value.split(",")]
        if entries is not None and any(entry.startswith("MIG-") for entry in entries):
            entries = None  # slices of a GPU have no index or UUID of their own here
        self._entries = entries

    def __contains__(self, device: tuple[int, Callable[[], str]]) -> bool:
        """Whether (NVML index, function that gives the UUID) is among them."""
        index, uuid = device
        if self._entries is None or str(index) in self._entries:
            return True
        prefixes = tuple(entry for entry in self._entries if entry.startswith("GPU-"))
        return bool(prefixes) and uuid().startswith(prefixes)


def visible_gpus() -> int:
    """How many GPUs a process started here would see, without starting CUDA; 0 without a driver that answers."""
    try:
        nvml = open_nvml()
    except (CollectorDisabled, DriverAway):
        return 0
    try:
        devices = VisibleDevices(os.environ.get("CUDA_VISIBLE_DEVICES"))
        handles = enumerate(map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount())))
        return sum((index, partial(nvml.nvmlDeviceGetUUID, handle)) in devices for index, handle in handles)
    except nvml.NVMLError:
        return 0
    finally:
        nvml.nvmlShutdown()
