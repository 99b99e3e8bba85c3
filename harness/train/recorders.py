"""What can be recorded of a few steps: a trace of all operators and kernels, or every allocation on the GPU."""

import gzip
import os
import shutil
from pathlib import Path
from typing import Protocol

import torch
from torch.profiler import ProfilerActivity, profile, record_function

MAX_ALLOCATIONS = 1_000_000
"""Allocations and frees that a memory snapshot goes back over; each takes a few kB of main memory."""


class Recorder(Protocol):
    """Records from its making until `finish`."""

    def step_begin(self, step: int) -> None:
        """A step begins."""

    def step_end(self) -> None:
        """It is over, as far as the host is concerned."""

    def finish(self, path: Path) -> None:
        """Stop recording and write it: all of it or nothing. Raises OSError, or what torch raises."""


class TraceRecorder:
    """A trace in Chrome's format, for Perfetto, as `.json.gz`. Holds host and GPU, with each step marked."""

    def __init__(self, device: torch.device) -> None:
        activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._step: record_function | None = None
        self._profile.start()

    def step_begin(self, step: int) -> None:
        self._step = record_function(f"step {step}")
        self._step.__enter__()

    def step_end(self) -> None:
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None

    def finish(self, path: Path) -> None:
        self.step_end()
        self._profile.stop()  # waits for the GPU
        # beside its final place: a trace of a big model fills the small disk that /tmp is on some nodes
        plain, packed = (path.with_name(f".{path.name}.{part}.tmp") for part in ("json", "gz"))
        try:
            self._profile.export_chrome_trace(str(plain))
            with open(plain, "rb") as source, gzip.open(packed, "wb", compresslevel=3) as target:
                shutil.copyfileobj(source, target)
            os.replace(packed, path)
        finally:
            plain.unlink(missing_ok=True)
            packed.unlink(missing_ok=True)


class MemoryRecorder:
    """A snapshot of the GPU's memory with the history of its allocations, for pytorch.org/memory_viz, as `.pickle`."""

    def __init__(self) -> None:
        torch.cuda.memory._record_memory_history("all", stacks="python", max_entries=MAX_ALLOCATIONS)

    def step_begin(self, step: int) -> None: ...

    def step_end(self) -> None: ...

    def finish(self, path: Path) -> None:
        unfinished = path.with_name(f".{path.name}.tmp")
        try:
            torch.cuda.memory._dump_snapshot(str(unfinished))
            os.replace(unfinished, path)
        finally:
            torch.cuda.memory._record_memory_history(None)
            unfinished.unlink(missing_ok=True)
