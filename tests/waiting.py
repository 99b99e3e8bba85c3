"""Waiting for what real processes and threads do in their own time."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path


def wait_for(
    condition: Callable[[], object], what: str = "what the test waits for", seconds: float = 60.0, every: float = 0.02
) -> None:
    """Return once `condition()` holds; one that raises OSError does not hold yet.

    The limit only ends a hopeless wait: no healthy machine needs it.
    """
    deadline = time.monotonic() + seconds
    while not _holds(condition):
        assert time.monotonic() < deadline, f"waited {seconds:.0f} s in vain: {what}"
        time.sleep(every)


def alive(pid: int) -> bool:
    """Whether the process is there and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until_dead(pids: Iterable[int]) -> None:
    """A signal is sent, not awaited: its process ends when it is next run."""
    left = list(pids)
    wait_for(lambda: not any(alive(pid) for pid in left), f"processes {left} end")


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except OSError:
        return False
