"""Stops, continues and kills a process with all that it has started."""

import contextlib
import os
import signal
import time
from pathlib import Path

POLL_SECONDS = 0.05


def freeze(pid: int) -> list[int]:
    """Stop `pid` and all below it, parents first, so that none can start another unseen. Returns who was stopped."""
    frozen: list[int] = []
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGSTOP)
            frozen.append(one)
            waiting += _children(one)
    return frozen


def send(pids: list[int], number: signal.Signals) -> None:
    """The same signal to all of them; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill(pid: int) -> None:
    """SIGKILL for `pid` and all below it, as if the machine had lost power."""
    send(freeze(pid), signal.SIGKILL)


def end(pid: int, patience: float) -> None:
    """SIGTERM for `pid` and all below it, which lets them tidy up; SIGKILL for those still there after `patience` seconds."""
    tree = [pid]
    for one in tree:  # which grows as we go
        tree += _children(one)
    send(tree, signal.SIGTERM)
    deadline = time.monotonic() + patience
    while any(map(_alive, tree)) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    send([one for one in tree if _alive(one)], signal.SIGKILL)
    kill(pid)


def _alive(pid: int) -> bool:
    """Whether it runs; a process that has ended and that nobody has asked for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (task / "children").read_text().split())
    except OSError:  # it, or one of its threads, has just ended
        pass
    return found
