"""stdout and stderr that never raise: a full disk costs a process its words, never its work.

Python's own streams raise when the log's disk is full, from every `print`, from logging and tqdm, and once more when the
interpreter exits (status 120).
"""

import contextlib
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class SteadyOutput(io.RawIOBase):
    """A file descriptor to write to. What it doesn't take is dropped and counted, and said once it takes something again."""

    def __init__(self, fd: int, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._fd, self._clock = fd, clock
        self._lock = threading.RLock()  # a signal handler may print in the middle of a print
        self._lost, self._since, self._why = 0, 0.0, ""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        try:
            return os.isatty(self._fd)
        except OSError:
            return False

    def write(self, data: Any) -> int:
        """Write all of `data` or count the rest as lost; returns its size either way."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        with self._lock:
            if self._lost and not self._put(memoryview(self._gap().encode())):
                self._lost += size
                return size
            self._lost = 0
            left = self._rest_of(rest)
            if left:
                self._lost, self._since = left, self._clock()
        return size

    def _put(self, data: memoryview) -> bool:
        return not self._rest_of(data)

    def _rest_of(self, data: memoryview) -> int:
        """Write `data`; how many bytes of it were not written."""
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError as error:
                self._why = error.strerror or str(error)
                break
        return len(data)

    def _gap(self) -> str:
        since, until = (time.strftime("%H:%M:%S", time.localtime(moment)) for moment in (self._since, self._clock()))
        return f"\n({self._lost:,} bytes of this output were lost between {since} and {until}: {self._why})\n"


def keep_printing() -> None:
    """Replace this process's stdout and stderr, so that nothing that is printed from now on can end it."""
    for name, fd in (("stdout", 1), ("stderr", 2)):
        old = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, full, or not there at all
            old.flush()
        raw: Any = SteadyOutput(fd)  # unbuffered, as with `python -u`
        new = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
