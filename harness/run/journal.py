"""Appends JSON lines to the run's files. Lines that can't be written now are kept in memory and written when they can be.

A full disk, a quota, a mount that went read-only or stale must not end training. Each process has one `Journal` per file.
"""

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.run.files import append_lines

MOST_WAITING = 10_000
"""Lines of one file that a process keeps; beyond these the oldest are lost."""
BLOCK_LINES = 500
"""Lines in one write, when many have waited."""


@dataclass(frozen=True)
class Gap:
    """A time in which a file could not be written, and which is over."""

    path: Path
    since: float
    """Unix time of the first line that had to wait."""
    until: float
    late: int
    """Lines that had to wait and are written now."""
    lost: int
    """Lines that are gone."""
    why: str


class Journal:
    """One file of JSON lines, as this process writes it. Nothing here raises OSError. Threads may share it."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._lock = threading.RLock()
        self._before: deque[Callable[[], object]] = deque()
        self._waiting: deque[str] = deque()
        self._gaps: list[Gap] = []
        self._since: float | None = None
        self._late = self._lost = 0
        self._why = ""
        self.lost = 0
        """Lines lost so far."""

    def write(self, record: Mapping[str, Any]) -> bool:
        """Append `record` after what still waits; whether it is in the file now."""
        line = json.dumps(dict(record)) + "\n"
        with self._lock:
            self._waiting.append(line)
            if len(self._waiting) > MOST_WAITING:
                self._waiting.popleft()
                self._lost += 1
                self.lost += 1
            return self.flush()

    def first(self, action: Callable[[], object]) -> None:
        """Do `action`, which may raise OSError, before any further line is written: now, or before the next one."""
        with self._lock:
            self._before.append(action)
            self.flush()

    def flush(self) -> bool:
        """Try to write what waits; whether nothing waits any more."""
        with self._lock:
            try:
                while self._before:
                    self._before[0]()
                    self._before.popleft()
                while self._waiting:
                    block = [self._waiting[at] for at in range(min(BLOCK_LINES, len(self._waiting)))]
                    append_lines(self._path, "".join(block).encode())
                    for _ in block:
                        self._waiting.popleft()
            except OSError as error:
                self._failed(error)
                return False
            self._recovered()
            return True

    @property
    def waiting(self) -> int:
        """Lines that wait."""
        return len(self._waiting)

    def unwritten(self) -> list[dict[str, Any]]:
        """The records that wait, oldest first."""
        with self._lock:
            return [json.loads(line) for line in self._waiting]

    def take_gaps(self) -> list[Gap]:
        """Gaps that are over and that nobody has taken yet."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
            return gaps

    def _failed(self, error: OSError) -> None:
        self._why, self._late = error.strerror or str(error), len(self._waiting) + self._lost
        if self._since is None:
            self._since = self._clock()
            what = _what(json.loads(self._waiting[0])) if self._waiting else "lines"
            print(
                f"could not write {what} to {self._path}: {self._why}; it waits, with those that follow, until there is room",
                flush=True,
            )

    def _recovered(self) -> None:
        if self._since is not None:
            gap = Gap(self._path, self._since, self._clock(), self._late - self._lost, self._lost, self._why)
            self._gaps.append(gap)
            print(f"{self._path} can be written again: {gap.late} lines were late, {gap.lost} are lost", flush=True)
        self._since, self._late, self._lost = None, 0, 0


def _what(record: dict[str, Any]) -> str:
    return f"event {record['event']}" if "event" in record else f"step {record.get('step')}"


_journals: dict[Path, Journal] = {}
_lock = threading.Lock()


def journal(path: Path) -> Journal:
    """This process's journal of `path`: the same object each time, since what waits must keep its order."""
    with _lock:
        return _journals.setdefault(path.absolute(), Journal(path))


def journals_in(folder: Path) -> list[Journal]:
    """Those of files in `folder` that this process has opened so far."""
    with _lock:
        return [one for path, one in _journals.items() if path.parent == folder.absolute()]


def lines_waiting(folder: Path) -> int:
    """Lines that this process still has to write, over all files in `folder`."""
    return sum(one.waiting for one in journals_in(folder))


def lines_lost(folder: Path) -> int:
    """Lines that this process has lost so far, over all files in `folder`."""
    return sum(one.lost for one in journals_in(folder))
