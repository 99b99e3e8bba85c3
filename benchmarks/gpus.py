"""The GPUs that are measured on: names, driver, and how much of their memory is in use."""

import asyncio
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from harness.observe.collector import CollectorDisabled
from harness.observe.nvml_library import DriverAway, open_nvml

SAMPLE_SECONDS = 0.2
FREED_BYTES = 1 << 30
"""A GPU counts as free again within this much of what was in use before."""


class NoGpus(Exception):
    """The GPUs asked for are not there; the message says what is."""


def visible(count: int) -> list[int]:
    """Numbers, in PCI order, of the first `count` GPUs of CUDA_VISIBLE_DEVICES, or of the machine. Raises NoGpus.

    Where the variable is not set, whether the machine has so many is not looked at: see `Gpus`.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return list(range(count))
    there = [name.strip() for name in named.split(",") if name.strip()]
    if not all(name.isdecimal() for name in there):
        raise NoGpus(f"CUDA_VISIBLE_DEVICES={named}: name the GPUs by their numbers, as in 0,1")
    if len(there) < count:
        raise NoGpus(f"CUDA_VISIBLE_DEVICES={named}: shows {len(there)} GPUs, {count} are needed")
    return [int(name) for name in there[:count]]


def environment(devices: Sequence[int]) -> dict[str, str]:
    """What shows a program these GPUs alone; with none, it is left to its own."""
    if not devices:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(map(str, devices))}


class Gpus:
    """GPUs by their numbers in PCI order, as NVML sees them."""

    def __init__(self, devices: Sequence[int]) -> None:
        """Raises NoGpus."""
        self.devices = list(devices)
        try:
            self._nvml = open_nvml()
        except (CollectorDisabled, DriverAway) as error:
            raise NoGpus(f"{len(self.devices)} GPUs are needed: {error}") from error
        there = self._nvml.nvmlDeviceGetCount()
        if there <= max(self.devices):
            raise NoGpus(f"{len(self.devices)} GPUs are needed (numbers {self.devices}): this machine has {there}")
        self._handles = [self._nvml.nvmlDeviceGetHandleByIndex(index) for index in self.devices]

    @property
    def names(self) -> list[str]:
        return [str(self._nvml.nvmlDeviceGetName(handle)) for handle in self._handles]

    @property
    def driver(self) -> str:
        return str(self._nvml.nvmlSystemGetDriverVersion())

    def memory_used(self) -> int:
        """Bytes in use on the fullest of the GPUs, by all processes."""
        return max(int(self._nvml.nvmlDeviceGetMemoryInfo(handle).used) for handle in self._handles)

    def clock(self) -> tuple[int, float]:
        """MHz and watts of the first GPU."""
        gpu = self._handles[0]
        megahertz = self._nvml.nvmlDeviceGetClockInfo(gpu, self._nvml.NVML_CLOCK_SM)
        return int(megahertz), self._nvml.nvmlDeviceGetPowerUsage(gpu) / 1000

    async def wait_until_free(self, before: int, seconds: float) -> bool:
        """Whether memory in use fell back to about `before` within `seconds`: processes that were killed take a moment."""
        deadline = time.monotonic() + seconds
        while self.memory_used() > before + FREED_BYTES:
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(SAMPLE_SECONDS)
        return True


class Sampling(ABC):
    """Looks at something now and then while the context is open, on a thread."""

    def __init__(self, seconds: float) -> None:
        """`seconds`: between two looks."""
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @abstractmethod
    def look(self) -> None:
        """Take one sample."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self.look()
            if self._stop.wait(self._seconds):
                return


class PeakMemory(Sampling):
    """The most that `used` says."""

    def __init__(self, used: Callable[[], int]) -> None:
        super().__init__(SAMPLE_SECONDS)
        self._used = used
        self.peak = 0
        """Bytes."""

    def look(self) -> None:
        self.peak = max(self.peak, self._used())
