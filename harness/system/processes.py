"""Processes that can't be mistaken: a process id is used again after its process has ended, id and start time are not."""

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_STATE, _START_TIME = 0, 19
"""Fields of /proc/PID/stat after the command's name, see proc(5)."""


@dataclass(frozen=True)
class Process:
    """One process, and no other that gets its id later."""

    pid: int
    started: float
    """In clock ticks since the machine's start, as /proc says; 0: not known, then the id alone must do."""

    @property
    def alive(self) -> bool:
        """Whether it still runs. One that has ended and that nobody has waited for yet does not."""
        return self.pid > 0 and (found := started(self.pid)) is not None and self.started in (0.0, found)

    def send(self, number: signal.Signals) -> bool:
        """Send it a signal; False if it has ended. Raises PermissionError if it is somebody else's."""
        if not self.alive:
            return False
        try:
            fd = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno == errno.ENOSYS:  # Linux before 5.3: the gap since the look above must do
                return _kill(self.pid, number)
            return False
        try:
            if not self.alive:  # asked again while `fd` holds the process: now its id can't change hands
                return False
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(fd)
        return True


def _kill(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def started(pid: int) -> float | None:
    """When the living process `pid` was started; None if there is none."""
    with contextlib.suppress(OSError, IndexError):
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return None if fields[_STATE] in "ZX" else float(fields[_START_TIME])
    return None
