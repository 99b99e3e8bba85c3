"""Where staged copies lie, and which file a reader should open now: the copy where it is complete, else the original.

STAGE_TO/
  NAME-HASH/shard.ds        a complete copy: it has been renamed into place, with the size and the time of its original
  NAME-HASH/.shard.ds.TAG.part    a copy under way, locked by who writes it
  .status-RUN-NODE.json     how far the run's stager has come
"""

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.data.origins import is_url, split

LOOK_SECONDS = 10.0
"""How often a reader looks again for the copy of a file that had none."""
STAT_THREADS = 16
SAME_TIME_NS = 1_000_000_000
"""Two modification times this close are the same: some file systems keep whole seconds."""


def staged_folder(stage_to: str | Path, origin: str) -> Path:
    """Where the copies of the files in the folder (or object store prefix) `origin` lie: the same for every run."""
    origin = origin.rstrip("/")
    digest = hashlib.blake2b(origin.encode(), digest_size=5).hexdigest()
    return Path(stage_to) / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', origin.rpartition('/')[2]) or 'data'}-{digest}"


def staged_path(stage_to: str | Path, original: str | Path) -> Path:
    """Where the copy of the file `original` lies, whether there is one or not."""
    folder, _, name = os.path.abspath(original).rpartition("/")
    return staged_folder(stage_to, folder) / name


def read_path(path: str, stage_to: str | None) -> str:
    """What a run opens as a source: `path`, or the folder of its copies where `path` is in an object store."""
    if not is_url(path) or stage_to is None:
        return path
    folder, name = split(path)
    copies = staged_folder(stage_to, folder)
    return str(copies / name if name else copies)


def same_version(copy: os.stat_result, size: int, modified_ns: int | None) -> bool:
    """Whether a copy is one of a file of this size and time; `modified_ns` None: its store tells none."""
    same_time = modified_ns is None or abs(copy.st_mtime_ns - modified_ns) < SAME_TIME_NS
    return copy.st_size == size and same_time


class StagedFiles:
    """Tells reading threads which file to open. Shared between them; a question costs one look into a dictionary, and
    never touches the originals' file system: what they are like is found out at the start, when they are opened anyway."""

    def __init__(
        self, stage_to: str | Path, originals: Iterable[str | Path], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises OSError where one of the originals can't be looked at."""
        self.stage_to, self._clock = stage_to, clock
        paths = [str(path) for path in originals]
        with ThreadPoolExecutor(STAT_THREADS) as pool:
            self._originals = dict(zip(paths, pool.map(os.stat, paths), strict=True))
        self._copies: dict[str, str] = {}
        self._look_again: dict[str, float] = {}

    def path(self, original: str | Path) -> str:
        """The complete copy of `original` where there is one by now, else `original` itself."""
        key = str(original)
        copy = self._copies.get(key)
        if copy is not None:
            return copy
        now = self._clock()
        if now < self._look_again.get(key, float("-inf")):
            return key
        self._look_again[key] = now + LOOK_SECONDS
        candidate = staged_path(self.stage_to, key)
        if not self._is_copy(candidate, key):
            return key
        self._copies[key] = str(candidate)
        return str(candidate)

    def forget(self, original: str | Path) -> None:
        """The copy could not be read: the original from now on, until the copy is looked for again."""
        key = str(original)
        self._look_again[key] = self._clock() + LOOK_SECONDS
        self._copies.pop(key, None)

    def _is_copy(self, candidate: Path, original: str) -> bool:
        stat = self._originals[original]
        try:
            return same_version(os.stat(candidate), stat.st_size, stat.st_mtime_ns)
        except OSError:
            return False
