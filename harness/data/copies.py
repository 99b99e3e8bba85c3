"""The places that hold a source's files: the run's own path first, then its replicas on disks or in object stores.

A read is never wrong: a file of another size than at the start, one that was written to since, and blocks that do not
agree with their checksums raise `Damaged`.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from harness.data.checksums import SUFFIX, Checksums
from harness.data.errors import DataError
from harness.data.stage_paths import StagedFiles, staged_path
from harness.data.token_files import TokenSource

OPEN_FILES = 256
"""Token files that a loader keeps open, each with its checksums; the one opened first is closed first."""


class Damaged(OSError):
    """The copy answers, and does not hold what it should. Waiting does not help."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EBADMSG, reason)


class Scratch:
    """One thread's memory for what it reads; grows to the largest read."""

    def __init__(self) -> None:
        self._memory = bytearray()

    def view(self, size: int) -> memoryview:
        """`size` bytes, whose content is what the last use has left."""
        if size > len(self._memory):
            self._memory = bytearray(size)
        return memoryview(self._memory)[:size]


class Copy(Protocol):
    """One place that holds all files of a source."""

    def path(self, file: int) -> str:
        """Where file number `file` of the source lies here."""

    def mount(self, file: int) -> str:
        """What it fails together with: a mount point, or a store's folder."""

    def has(self, file: int) -> bool:
        """Whether the file can be expected here now."""

    def read(self, file: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        """`length` bytes from `offset` on, checked; good until `scratch` is used again. Raises OSError."""


class _Handle:
    """An open token file; closed when nobody uses it any more and it is no longer among the open ones."""

    __slots__ = ("number", "sums")

    def __init__(self, number: int, sums: Checksums | None) -> None:
        self.number = number
        self.sums = sums

    def __del__(self) -> None:
        os.close(self.number)
        if self.sums is not None:
            self.sums.close()


class OpenFiles:
    """Token files kept open for all threads of a loader. A hung thread keeps its file open, and harms nobody else's."""

    def __init__(self, verify: bool) -> None:
        self._verify = verify
        self._lock = threading.Lock()
        self._open: dict[str, _Handle] = {}
        self._written: dict[str, int] = {}

    def take(self, path: str, size: int) -> _Handle:
        """The open file, which must have `size` bytes; opening may take as long as the storage likes. Raises OSError."""
        handle = self._open.get(path)
        if handle is not None:
            return handle
        handle, crowded = self._opened(path, size), None
        with self._lock:
            self._open[path] = handle
            if len(self._open) > OPEN_FILES:
                crowded = self._open.pop(next(iter(self._open)))
        del crowded  # outside the lock: on a dead mount even closing may hang
        return handle

    def forget(self, path: str) -> None:
        """Open it anew next time: a stale handle of a network file system never recovers."""
        with self._lock:
            handle = self._open.pop(path, None)
        del handle

    def close(self) -> None:
        """Forget all files."""
        for path in list(self._open):
            self.forget(path)

    def _opened(self, path: str, size: int) -> _Handle:
        handle = _Handle(os.open(path, os.O_RDONLY | os.O_CLOEXEC), None)
        stat = os.fstat(handle.number)
        if stat.st_size != size:
            raise Damaged(f"the file has {stat.st_size} bytes, and had {size} when the run started")
        if self._verify:
            handle.sums = _checksums(lambda: Checksums.open(path), size)
        written = self._written.setdefault(path, stat.st_mtime_ns)
        if handle.sums is None and written != stat.st_mtime_ns:
            raise Damaged("the file was replaced or written to after the run had started")
        return handle


class LocalCopy:
    """A folder on this machine or on a file system that it mounts."""

    def __init__(self, source: TokenSource, paths: Sequence[str], files: OpenFiles) -> None:
        self._mounts = _mounts(paths)
        self._paths = paths
        self._sizes = [file.tokens * source.token_size for file in source.files]
        self._files = files

    def path(self, file: int) -> str:
        return self._paths[file]

    def mount(self, file: int) -> str:
        return self._mounts[file]

    def has(self, file: int) -> bool:
        return True

    def read(self, file: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        return self._read(self._paths[file], file, offset, length, scratch)

    def _read(self, path: str, file: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        try:
            handle = self._files.take(path, self._sizes[file])
            sums = handle.sums
            if sums is None:
                data = scratch.view(length)
                _fill(handle.number, data, offset)
                return data
            begin, end = sums.cover(offset, length)
            data = scratch.view(end - begin)
            _fill(handle.number, data, begin)
            _check(sums, begin, data)
            return data[offset - begin : offset - begin + length]
        except OSError:
            self._files.forget(path)
            raise


class StagedCopy(LocalCopy):
    """Copies on the node's own disk, which appear while the run goes on."""

    def __init__(self, source: TokenSource, staged: StagedFiles, files: OpenFiles) -> None:
        self._originals = [str(file.path) for file in source.files]
        self._staged = staged
        paths = [str(staged_path(staged.stage_to, original)) for original in self._originals]
        super().__init__(source, paths, files)
        self._mounts = [mount_point(staged.stage_to)] * len(paths)

    def has(self, file: int) -> bool:
        return self._staged.path(self._originals[file]) != self._originals[file]

    def read(self, file: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        original = self._originals[file]
        try:
            return self._read(self._staged.path(original), file, offset, length, scratch)
        except OSError:
            self._staged.forget(original)
            raise


class StoredCopy:
    """A folder in an object store or wherever else fsspec reads: s3://bucket/folder, gs://..., file:///folder."""

    def __init__(self, source: TokenSource, urls: Sequence[str], verify: bool) -> None:
        self._folder = urls[0].rpartition("/")[0]
        self._urls = urls
        self._sizes = [file.tokens * source.token_size for file in source.files]
        self._verify = verify
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Checksums | None] = OrderedDict()

    def path(self, file: int) -> str:
        return self._urls[file]

    def mount(self, file: int) -> str:
        return self._folder

    def has(self, file: int) -> bool:
        return True

    def read(self, file: int, offset: int, length: int, scratch: Scratch) -> memoryview:
        try:
            return self._read(self._urls[file], self._sizes[file], offset, length)
        except (OSError, ImportError):
            raise
        except Exception as error:  # each store has errors of its own
            raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error

    def _read(self, url: str, size: int, offset: int, length: int) -> memoryview:
        from fsspec.core import url_to_fs

        store, path = url_to_fs(url)
        sums = self._looked_up(store, path, size)
        begin, end = sums.cover(offset, length) if sums else (offset, offset + length)
        data = memoryview(store.cat_file(path, start=begin, end=end))
        if len(data) != end - begin:
            raise Damaged(f"{len(data)} bytes came where {end - begin} were asked for")
        if sums is not None:
            _check(sums, begin, data)
        return data[offset - begin : offset - begin + length]

    def _looked_up(self, store: Any, path: str, size: int) -> Checksums | None:
        """The file's checksums; its size is looked at once."""
        with self._lock:
            if path in self._known:
                self._known.move_to_end(path)
                return self._known[path]
        if (found := store.info(path)["size"]) != size:
            raise Damaged(f"the object has {found} bytes, and {size} are right")
        sums = _checksums(lambda: _stored_checksums(store, path + SUFFIX), size) if self._verify else None
        with self._lock:
            self._known[path] = sums
            if len(self._known) > OPEN_FILES:
                self._known.popitem(last=False)
        return sums


def open_copies(
    source: TokenSource, replicas: Sequence[str], files: OpenFiles, verify: bool, staged: StagedFiles | None = None
) -> list[Copy]:
    """What is staged first, then the source's own files, then `replicas`: folders or URLs with files of the same names."""
    copies: list[Copy] = [StagedCopy(source, staged, files)] if staged is not None else []
    copies.append(LocalCopy(source, [str(file.path) for file in source.files], files))
    for replica in replicas:
        root = replica.rstrip("/")
        paths = [root if root.endswith(".ds") else f"{root}/{file.path.name}" for file in source.files]
        if "://" in replica:
            copies.append(StoredCopy(source, paths, verify))
        else:
            copies.append(LocalCopy(source, [os.path.expanduser(path) for path in paths], files))
    return copies


def mount_point(path: str | os.PathLike[str]) -> str:
    """Where the file system that holds `path` is mounted; symbolic links are followed."""
    place = os.path.realpath(path)
    while not os.path.ismount(place):
        place = os.path.dirname(place)
    return place


def _mounts(paths: Sequence[str]) -> list[str]:
    """Mount points of files, most of which lie side by side; a link belongs to the mount that it leads to."""
    known: dict[str, str] = {}
    found = []
    for path in paths:
        folder = os.path.dirname(os.path.realpath(path) if os.path.islink(path) else path)
        if folder not in known:
            known[folder] = mount_point(folder)
        found.append(known[folder])
    return found


def _fill(handle: int, data: memoryview, offset: int) -> None:
    """Read until `data` is full: a network file system may hand out less than was asked for."""
    done = os.preadv(handle, [data], offset)
    while done < len(data):
        more = os.preadv(handle, [data[done:]], offset + done)
        if not more:
            raise Damaged(f"the file ends at byte {offset + done}: it was cut off after the run had started")
        done += more


def _check(sums: Checksums, begin: int, data: memoryview) -> None:
    if (mismatch := sums.verify(begin, data)) is not None:
        blame = f"; {sums.name} itself is damaged" if sums.damaged() else ""
        raise Damaged(f"{mismatch}{blame}")


def _checksums(open_them: Callable[[], Checksums | None], size: int) -> Checksums | None:
    try:
        sums = open_them()
    except DataError as error:
        raise Damaged(str(error)) from error
    if sums is not None and sums.file_size != size:
        sums.close()
        raise Damaged(f"its checksums are those of a file of {sums.file_size} bytes, and it has {size}")
    return sums


def _stored_checksums(store: Any, path: str) -> Checksums | None:
    try:
        size = store.info(path)["size"]
    except FileNotFoundError:
        return None

    def read(offset: int, length: int) -> bytes:
        return bytes(store.cat_file(path, start=offset, end=min(size, offset + length)))

    return Checksums(path, read, size, lambda: None)
