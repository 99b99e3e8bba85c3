"""One reading thread's way to the token files: timed `pread`s that retry, never return wrong data, and tell an observer."""

import errno
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from harness.data.errors import DataError
from harness.data.observer import ReadObserver
from harness.data.stage_paths import StagedFiles
from harness.data.token_files import DTYPES
from harness.data.windows import Piece, Windows

log = logging.getLogger(__name__)

OPEN_FILES = 64
"""Files that each thread keeps open; the least recently used one is closed first."""
RETRY_DELAYS = (0.1, 0.5, 2.0)
"""Seconds between attempts at a read that failed. After the last one the error goes to the trainer."""
SLOW_LOG_SECONDS = 10.0
"""At most one line about slow reads in this time; the next one says how many were left out."""


class Closing(Exception):
    """The loader closes; the read was given up."""


@dataclass
class ReadPlan:
    """What all reading threads of a loader share."""

    windows: Sequence[Windows]
    """One per source, in the order's numbering."""
    keys: dict[tuple[int, int], int]
    """(number of the source, number of the file) -> the observer's number of its (mount point, source)."""
    observer: ReadObserver
    slow_seconds: float
    vocab_size: int | None
    staged: StagedFiles | None = None
    """Where copies on the node's own disk are found; None: nothing is staged."""
    staged_keys: dict[int, int] = field(default_factory=dict)
    """Number of the source -> the observer's number of (mount point of the copies, source)."""
    closing: threading.Event = field(default_factory=threading.Event)
    slow_lock: threading.Lock = field(default_factory=threading.Lock)
    slow_logged: float = float("-inf")
    slow_unlogged: int = 0


class WindowReader:
    """Reads windows for the thread with number `slot`. Not shared between threads."""

    def __init__(self, plan: ReadPlan, slot: int) -> None:
        self._plan = plan
        self._slot = slot
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, source: int, window: int, out: np.ndarray) -> None:
        """Fill `out`, int64 [seq_len + 1], with a window's tokens.

        Raises DataError that names file and offset when the read keeps failing, or when an id is outside the vocabulary;
        Closing when the loader closes in between.
        """
        windows = self._plan.windows[source]
        begin = 0
        for piece in windows.pieces(window):
            self._read_piece(source, piece, out[begin : begin + piece.tokens])
            begin += piece.tokens

    def close(self) -> None:
        """Close all files."""
        while self._open:
            os.close(self._open.popitem()[1])

    def _read_piece(self, source: int, piece: Piece, out: np.ndarray) -> None:
        windows = self._plan.windows[source]
        path, offset = str(windows.source.files[piece.file].path), piece.offset
        width = windows.source.token_size
        data = self._read_with_retries(path, offset, len(out) * width, source, piece.file)
        out[:] = np.frombuffer(data, DTYPES[width])
        limit = self._plan.vocab_size
        if limit is not None and (highest := int(out.max())) >= limit:
            at = offset + int(out.argmax()) * width
            raise DataError(
                f"{windows.source.key}: token {highest} at byte {at} of {path}, but "
                f"model.vocab_size={limit}: the file is damaged or made with another tokenizer"
            )

    def _read_with_retries(self, path: str, offset: int, length: int, source: int, number: int) -> bytes:
        plan, name, original = self._plan, self._plan.windows[source].source.name, path
        for delay in (*RETRY_DELAYS, None):
            path = plan.staged.path(original) if plan.staged is not None else original
            key = plan.keys[source, number] if path == original else plan.staged_keys[source]
            try:
                return self._timed_read(path, offset, length, key, name)
            except OSError as error:
                if plan.staged is not None and path != original:
                    plan.staged.forget(original)
                self._forget(path)  # a stale handle of a network file system never recovers
                reason = f"{error.strerror or error}"
                if delay is None:
                    raise DataError(
                        f"cannot read {length} bytes at offset {offset} of {path} (source {name}): {reason}; gave up after "
                        f"{len(RETRY_DELAYS) + 1} attempts. Restore the file, then launch the run again."
                    ) from error
            log.warning(
                "read of %d bytes at offset %d of %s failed: %s; again in %g s", length, offset, path, reason, delay
            )
            if plan.closing.wait(delay):
                raise Closing
        raise AssertionError("unreachable")

    def _timed_read(self, path: str, offset: int, length: int, key: int, source: str) -> bytes:
        """One attempt, opening included: on a cold file system that is where the time goes."""
        if self._plan.closing.is_set():
            raise Closing
        observer = self._plan.observer
        observer.started(self._slot, key)
        start = time.perf_counter()
        try:
            data = self._pread(path, offset, length)
        except OSError as error:
            observer.failed(self._slot, key, error.errno or errno.EIO)
            raise
        seconds = time.perf_counter() - start
        slow = seconds > self._plan.slow_seconds
        observer.finished(self._slot, key, seconds, length, slow)
        if slow:
            self._log_slow(seconds, path, offset, source)
        return data

    def _pread(self, path: str, offset: int, length: int) -> bytes:
        handle = self._open.get(path)
        if handle is None:
            if len(self._open) >= OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
            handle = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            self._open.move_to_end(path)
        data = os.pread(handle, length, offset)
        while 0 < len(data) < length:  # a network file system may hand out less than was asked for
            more = os.pread(handle, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        if len(data) < length:
            size = os.fstat(handle).st_size
            raise OSError(errno.EIO, f"the file ends at byte {size}: it was cut off after the run had started")
        return data

    def _forget(self, path: str) -> None:
        handle = self._open.pop(path, None)
        if handle is not None:
            os.close(handle)

    def _log_slow(self, seconds: float, path: str, offset: int, source: str) -> None:
        plan = self._plan
        with plan.slow_lock:
            now = time.monotonic()
            if now - plan.slow_logged < SLOW_LOG_SECONDS:
                plan.slow_unlogged += 1
                return
            unlogged, plan.slow_unlogged, plan.slow_logged = plan.slow_unlogged, 0, now
        others = f" ({unlogged} more slow reads since the last such line)" if unlogged else ""
        log.warning("slow read: %.2f s at offset %d of %s (source %s)%s", seconds, offset, path, source, others)


def mount_point(path: str | os.PathLike[str]) -> str:
    """Where the file system that holds `path` is mounted; symbolic links are followed."""
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


def observer_keys(windows: Sequence[Windows]) -> tuple[list[tuple[str, str]], dict[tuple[int, int], int]]:
    """What an observer registers, (mount point, source name), and which of them each (source, file) belongs to."""
    names: dict[tuple[str, str], int] = {}
    keys: dict[tuple[int, int], int] = {}
    mounts: dict[str, str] = {}
    for number, source in enumerate(window.source for window in windows):
        for index, file in enumerate(source.files):
            folder = os.path.dirname(os.path.realpath(file.path))
            if folder not in mounts:
                mounts[folder] = mount_point(folder)
            name = (mounts[folder], source.name)
            keys[number, index] = names.setdefault(name, len(names))
    return list(names), keys
