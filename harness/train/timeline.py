"""When the device reached which point of a step, without waiting for it."""

import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Mark:
    """A point on the device's timeline; on CPU, where work is done at once, a point in time."""

    event: torch.cuda.Event | None
    host: float


class Timeline:
    """Sets marks into the device's queue and tells the time between them once they have been reached."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"

    def mark(self) -> Mark:
        """The point at which everything queued so far is done."""
        event = None
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
        return Mark(event, time.perf_counter())

    def wait(self, mark: Mark) -> None:
        """Block the host until the device has reached `mark`."""
        if mark.event is not None:
            mark.event.synchronize()

    def seconds(self, begin: Mark, end: Mark) -> float:
        """Time between two marks; waits until the device has reached the later one."""
        if begin.event is None or end.event is None:
            return end.host - begin.host
        end.event.synchronize()
        return begin.event.elapsed_time(end.event) / 1000
