"""The windows of `data.packing=best_fit`: computed once per source and sequence length, kept as a table, read from there.

A table is a folder: `packing.json` with the facts, `windows.bin` and `pieces.bin` with one record each. It lies beside the
token files or, where their folder can't be written or is in an object store, in `data.packing_cache`; `data.stage_to` copies
it with the token files, and then the copy is read. It is made under another name and renamed
once it is complete, by one process at a time; others wait. Making it takes memory for some ten thousand documents,
reading a window that for none.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import socket
import time
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.schema import DataConfig, Packing
from harness.data.errors import DataError
from harness.data.origins import join
from harness.data.stage_paths import staged_folder
from harness.data.token_files import HEADER_THREADS, TokenFile, TokenSource, index_path
from harness.data.windows import Piece, Windows
from harness.run.files import read_json, write_json

FORMAT = 1
"""Raise when the same files would be packed in another way."""
WINDOW = np.dtype([("end", "<u8"), ("tokens", "<u4")])
"""Pieces in this window and all before it; tokens in this one."""
PIECE = np.dtype([("begin", "<u8"), ("tokens", "<u4")])
"""First token in its file; tokens."""
TABLE_FILES = ("packing.json", "windows.bin", "pieces.bin")
GROUP_DOCUMENTS = 1 << 16
"""Documents that are packed together. More would waste hardly less, and scatter the pieces of a window over more of the file."""
STALE_SECONDS = 60.0
"""A lock that nobody has touched for this long belongs to a process that died."""
POLL_SECONDS = 0.5


class PackingMissing(DataError):
    """The table has not been made yet."""


class _Packed(Windows):
    """A source's documents in windows of at most `seq_len` + 1 tokens, by the facts of a table."""

    padded = True

    def __init__(self, source: TokenSource, seq_len: int, facts: dict[str, Any]) -> None:
        super().__init__(source, seq_len)
        self.facts = facts
        self._ends = list(accumulate(facts["windows_of_files"]))

    @property
    def identity(self) -> dict[str, Any]:
        return {"packing": self.facts["digest"]}

    @property
    def wasted(self) -> float:
        return 1 - float(self.facts["tokens"]) / max(1, self.count * (self.seq_len + 1))


class PackedWindows(_Packed):
    """As a table on this machine, or one that it sees, says."""

    def __init__(self, source: TokenSource, seq_len: int, table: Path) -> None:
        """Raises DataError where the table is damaged."""
        super().__init__(source, seq_len, _facts(table))
        self._windows = _map(table / "windows.bin", WINDOW, self.count)
        self._pieces = _map(table / "pieces.bin", PIECE, self.facts["pieces"])

    def pieces(self, window: int) -> tuple[Piece, ...]:
        if not 0 <= window < self.count:
            raise IndexError(f"window {window} of {self.count} in source {self.source.name}")
        file = bisect_right(self._ends, window)
        begin = int(self._windows["end"][window - 1]) if window else 0
        found = self._pieces[begin : int(self._windows["end"][window])]
        size = self.source.token_size
        return tuple(Piece(file, first * size, tokens) for first, tokens in found.tolist())

    def targets(self, windows: np.ndarray) -> int:
        return int(self._windows["tokens"][windows].sum(dtype=np.int64)) - len(windows)


class PackedOutline(_Packed):
    """As a table in the object store says, of which only the facts are read: enough for the order, not for the samples."""

    def pieces(self, window: int) -> tuple[Piece, ...]:
        raise self._not_here()

    def targets(self, windows: np.ndarray) -> int:
        raise self._not_here()

    def _not_here(self) -> DataError:
        return DataError(
            f"{self.source.key}: its packing table is in the object store; to have it here, run python -m harness.data stage "
            "with the same overrides, or --run RUN"
        )


def cut(source: TokenSource, data: DataConfig, *, build: bool = True) -> Windows:
    """A source of `data.sources` as `data.packing` cuts it. Raises DataError; see `harness.data.order.open_order`."""
    if data.packing is Packing.chunk:
        return Windows(source, data.seq_len)
    name = table_name(source, data.seq_len)
    copy = _staged_table(source, data, name)
    if copy is not None:
        return PackedWindows(source, data.seq_len, copy)
    places = _places(source, data, name)
    table = _find(places)
    if table is None and (facts := _stored_facts(source, name)) is not None:
        return PackedOutline(source, data.seq_len, facts)
    if table is None and not build:
        raise PackingMissing(f"{source.key}: not packed for data.seq_len={data.seq_len} yet; launching the run does it")
    return PackedWindows(source, data.seq_len, table or _make(source, data.seq_len, places))


def locate_table(source: TokenSource, data: DataConfig) -> tuple[str, str] | None:
    """(name, folder or URL) of the table of a source that was not opened by its copies; None: it has not been made yet.

    Raises DataError.
    """
    name = table_name(source, data.seq_len)
    if _stored_facts(source, name) is not None:
        assert source.store is not None
        return name, join(source.store.url, name)
    table = _find(_places(source, data, name))
    return (name, str(table)) if table else None


def _places(source: TokenSource, data: DataConfig, name: str) -> list[Path]:
    """Where a table is looked for and made: beside the token files, but not beside copies, which every node has for itself."""
    cache = Path(data.packing_cache).expanduser() / name
    return [source.path / name, cache] if source.url is None else [cache]


def _staged_table(source: TokenSource, data: DataConfig, name: str) -> Path | None:
    """The table's copy on this node, once all of it is there: its name says that it is of the same documents."""
    if data.stage_to is None:
        return None
    folder = source.store.url if source.store else os.path.abspath(source.path)
    copies = source.path if source.url and not source.store else staged_folder(data.stage_to, folder)
    return copies / name if all((copies / name / file).is_file() for file in TABLE_FILES) else None


def _stored_facts(source: TokenSource, name: str) -> dict[str, Any] | None:
    """Facts of the table that lies beside token files in an object store."""
    if source.store is None:
        return None
    place = f"{name}/packing.json"
    try:
        size = source.store.size(place)
        return None if size is None else dict(json.loads(source.store.read(place, 0, size)))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{source.key}: {place} can't be read: {error}. Remove {name}, and it is made again.") from None


def _find(places: list[Path]) -> Path | None:
    return next((place for place in places if (place / "packing.json").is_file()), None)


def table_name(source: TokenSource, seq_len: int) -> str:
    """A name that changes with the files' names, sizes and documents, not with where they lie. Raises DataError."""
    folder = source.folder

    def outline(file: TokenFile) -> list[Any]:
        # the same documents shuffled anew have another one end in the middle
        index = index_path(file.path).name
        size = folder.size(index)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), index)
        return [file.path.name, file.tokens, size, folder.read(index, size // 16 * 8, 8).hex()]

    try:
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            listing = list(pool.map(outline, source.files))
    except OSError as error:
        raise DataError(f"{source.key}: {error.filename} cannot be read: {error.strerror or error}") from None
    digest = hashlib.blake2b(json.dumps([FORMAT, listing]).encode(), digest_size=6).hexdigest()
    return f"best_fit-{seq_len}-{digest}"


def _facts(table: Path) -> dict[str, Any]:
    try:
        facts = read_json(table / "packing.json")
        if not isinstance(facts, dict):
            raise ValueError("no JSON object")
    except (OSError, ValueError) as error:
        raise DataError(f"{table}/packing.json can't be read: {error}. Remove {table}, and it is made again.") from None
    return facts


def _map(path: Path, kind: np.dtype[Any], count: int) -> np.ndarray:
    """`count` records in a file, read where they are looked at."""
    try:
        size = path.stat().st_size
        if size != count * kind.itemsize:
            raise DataError(
                f"{path} has {size} bytes instead of {count * kind.itemsize}. Remove {path.parent}, and it is made again."
            )
        return np.asarray(np.memmap(path, kind, "r", shape=(count,))) if count else np.zeros(0, kind)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _make(source: TokenSource, seq_len: int, places: list[Path]) -> Path:
    """Make the table in the first of `places` that can be written, or wait for the process that does."""
    refused = []
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _lock(place) as ours:
                if ours and _find([place]) is None:
                    _build(source, seq_len, place)
            return place
        except OSError as error:
            refused.append(f"{place.parent}: {error.strerror}")
    raise DataError(
        f"{source.key}: data.packing=best_fit has no place for its table ({'; '.join(refused)}). Set data.packing_cache to a "
        "folder that can be written and that every node sees."
    )


@contextlib.contextmanager
def _lock(place: Path) -> Iterator[bool]:
    """Own the making of `place`: True. Or wait until another process has made it: False. Raises OSError.

    The lock is a file that its owner touches, since not every shared file system has locks. Whoever sees it untouched for
    long takes it away: the owner is dead. At worst two make the same table, and one of them finds it made.
    """
    path = place.with_name(f".{place.name}.lock")
    seen, since = None, time.monotonic()
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            if (place / "packing.json").is_file():
                yield False
                return
            with contextlib.suppress(FileNotFoundError):
                touched = path.stat().st_mtime_ns
                if touched != seen:
                    seen, since = touched, time.monotonic()
                elif time.monotonic() - since > STALE_SECONDS:
                    path.unlink(missing_ok=True)
            time.sleep(POLL_SECONDS)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"{socket.gethostname()} {os.getpid()}\n")
        yield True
    finally:
        path.unlink(missing_ok=True)


def _build(source: TokenSource, seq_len: int, place: Path) -> None:
    """Write the table under a name of its own, then give it its name. Raises DataError where an index is damaged."""
    lock = place.with_name(f".{place.name}.lock")
    for left in place.parent.glob(f".{place.name}.making-*"):  # by a process that was killed
        newest = max(path.stat().st_mtime for path in [left, *left.iterdir()])
        if lock.stat().st_mtime - newest > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    folder = place.with_name(f".{place.name}.making-{socket.gethostname()}-{os.getpid()}")
    folder.mkdir()
    try:
        facts = _write(source, seq_len, folder, lock)
        write_json(folder / "packing.json", facts)
        try:
            os.rename(folder, place)
        except OSError:
            if _find([place]) is None:  # nobody else was quicker
                raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _write(source: TokenSource, seq_len: int, folder: Path, lock: Path) -> dict[str, Any]:
    from tqdm import tqdm

    from harness.data.best_fit import Packed, pack

    facts = {"format": FORMAT, "seq_len": seq_len, "documents": 0, "split": 0, "tokens": 0, "pieces": 0}
    windows_of_files: list[int] = []
    digest = hashlib.blake2b(digest_size=16)
    total = sum((source.folder.size(index_path(file.path).name) or 0) // 8 for file in source.files)

    def add(packed: Packed, windows_file: Any, pieces_file: Any) -> None:
        pieces = np.empty(len(packed.begins), PIECE)
        pieces["begin"], pieces["tokens"] = packed.begins, packed.lengths
        windows = np.empty(len(packed.ends), WINDOW)
        windows["end"] = packed.ends + facts["pieces"]
        if len(windows):
            windows["tokens"] = np.add.reduceat(packed.lengths, np.concatenate([[0], packed.ends[:-1]]))
        for records, file in ((windows, windows_file), (pieces, pieces_file)):
            file.write(records.tobytes())
            digest.update(records.tobytes())
        facts["split"] += packed.split
        facts["tokens"] += int(packed.lengths.sum())
        facts["pieces"] += len(pieces)
        windows_of_files[-1] += len(windows)

    with (
        (folder / "windows.bin").open("wb") as windows_file,
        (folder / "pieces.bin").open("wb") as pieces_file,
        tqdm(total=total, desc=f"packing {source.name}", unit=" documents", unit_scale=True, mininterval=1) as progress,
    ):
        for file in source.files:
            windows_of_files.append(0)
            for ends, begin in _documents(source, file.path, file.tokens):
                add(pack(ends, begin, seq_len), windows_file, pieces_file)
                facts["documents"] += len(ends)
                progress.update(len(ends))
                with contextlib.suppress(OSError):
                    os.utime(lock)
        for written in (windows_file, pieces_file):
            written.flush()
            os.fsync(written.fileno())
    return {**facts, "windows_of_files": windows_of_files, "digest": digest.hexdigest()}


def _documents(source: TokenSource, path: Path, tokens: int) -> Iterator[tuple[np.ndarray, int]]:
    """The ends of a file's documents, a group at a time: int64 [documents], and where the first of them begins."""
    begin = 0
    with source.folder.open(index_path(path).name) as file:
        while block := file.read(8 * GROUP_DOCUMENTS):
            ends = np.frombuffer(block[: len(block) // 8 * 8], "<u8").astype(np.int64)
            if (np.diff(ends, prepend=begin) < 0).any():
                raise DataError(f"{source.key}: {index_path(path).name} is damaged: a document ends before it begins")
            yield ends, begin
            begin = int(ends[-1])
    if begin != tokens:
        raise DataError(
            f"{source.key}: {path.name} holds {tokens} tokens, but its index ends at {begin}: one of the two is cut off"
        )
