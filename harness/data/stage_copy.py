"""Copies one file so that it is complete and verified or not there at all, whatever is killed when, and whoever else copies."""

import contextlib
import errno
import fcntl
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from harness.data.origins import open_at
from harness.data.stage_paths import same_version
from harness.data.stage_plan import StageFile
from harness.run.files import fsync_folder

CHUNK_BYTES = 4 << 20
FLUSH_BYTES = 64 << 20
"""Written between two flushes to disk, after which the pages go: a copy must not push the run's own out of memory."""
DEFAULT_FREE_SHARE = 0.05
DEFAULT_FREE_BYTES = 100 * 10**9
"""Left free where the config does not say: this share of the file system, at most so many bytes."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class NoRoom(Exception):
    """The copy would take space that is to stay free."""


class Damaged(Exception):
    """What was read is not what the manifest says."""


class Busy(Exception):
    """Another process copies this file at the moment, and has come so far."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class Stopped(Exception):
    """The stager has been told to end."""


class Origin(Protocol):
    """A place that a file can be had from."""

    name: str

    def open(self, file: StageFile, offset: int) -> BinaryIO:
        """Raises OSError where it is not there (any more) or is another version."""


class Original:
    """The source's own path or URL."""

    name = "the original"

    def open(self, file: StageFile, offset: int) -> BinaryIO:
        return open_at(file.origin, offset)


class Room:
    """Space on the file system of the stage folder, shared by all copying threads."""

    def __init__(self, folder: Path, keep_free: int | None) -> None:
        """`folder` or the nearest one above it that exists is asked."""
        self._folder = next(path for path in (folder, *folder.parents) if path.exists())
        self._lock = threading.Lock()
        self._reserved = 0
        self.keep_free = keep_free if keep_free is not None else default_keep_free(self._folder)

    def left(self) -> int:
        """Bytes that may still be written, those reserved by copies under way taken off; negative: too much is full."""
        stat = os.statvfs(self._folder)
        return stat.f_bavail * stat.f_frsize - self.keep_free - self._reserved

    @contextlib.contextmanager
    def reserve(self, size: int) -> "Iterator[Reservation]":
        """Hold `size` bytes for one copy. Raises NoRoom."""
        with self._lock:
            if size > max(0, self.left()):
                raise NoRoom
            self._reserved += size
        held = Reservation(self, size)
        try:
            yield held
        finally:
            self.give_back(held.size)

    def give_back(self, size: int) -> None:
        with self._lock:
            self._reserved -= size

    def check(self) -> None:
        """Raises NoRoom where somebody else has filled the disk meanwhile."""
        stat = os.statvfs(self._folder)
        if stat.f_bavail * stat.f_frsize < self.keep_free:
            raise NoRoom


@dataclass
class Reservation:
    """Bytes held for one copy, less what it has written: the file system counts those itself."""

    room: Room
    size: int

    def written(self, size: int) -> None:
        taken = min(size, self.size)
        self.room.give_back(taken)
        self.size -= taken
        self.room.check()


def default_keep_free(folder: Path) -> int:
    """Bytes left free on the file system of `folder` where the config does not say."""
    stat = os.statvfs(folder)
    return min(int(stat.f_blocks * stat.f_frsize * DEFAULT_FREE_SHARE), DEFAULT_FREE_BYTES)


class RateLimit:
    """Lets threads through so that all of them together stay under a number of bytes per second; None: no limit."""

    def __init__(self, bytes_per_second: float | None, stop: threading.Event) -> None:
        self._rate, self._stop = bytes_per_second, stop
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def wait(self, size: int) -> None:
        """Wait for the turn of `size` bytes. Raises Stopped."""
        if self._rate is None:
            return
        with self._lock:
            turn = max(self._free_at, time.monotonic())
            self._free_at = turn + size / self._rate
        if self._stop.wait(max(0.0, turn - time.monotonic())):
            raise Stopped


@dataclass(frozen=True)
class Copier:
    """What all copies of a stager share."""

    room: Room
    limit: RateLimit
    stop: threading.Event
    told: Callable[[int], None]
    """Called with the bytes that have just been copied."""

    def copy(self, file: StageFile, origins: list[Origin]) -> str | None:
        """Make `file.copy` from the first of `origins` that has it; returns that one's name, None: the copy was there.

        Raises Busy, NoRoom, Stopped; Damaged where every origin gives something else than the manifest says; OSError.
        """
        if is_staged(file):
            return None
        file.copy.parent.mkdir(parents=True, exist_ok=True)
        part = _part_path(file)
        with _locked(part) as fd:
            if is_staged(file):  # while we were waiting for the lock
                part.unlink()
                return None
            _remove_older_parts(file, part)
            try:
                name = self._from_any(file, origins, fd)
            except (NoRoom, Damaged):
                part.unlink(missing_ok=True)
                raise
            if file.modified_ns is not None:
                os.utime(fd, ns=(file.modified_ns, file.modified_ns))
            os.fchmod(fd, 0o644)
            os.fsync(fd)
            os.rename(part, file.copy)
        fsync_folder(file.copy.parent)
        return name

    def _from_any(self, file: StageFile, origins: list[Origin], fd: int) -> str:
        failure: OSError | Damaged | None = None
        for origin in origins:
            for _ in range(2):
                resumed = os.fstat(fd).st_size > 0
                try:
                    self._fill(file, origin, fd)
                    return origin.name
                except Damaged as error:
                    failure = error
                    os.ftruncate(fd, 0)
                    if not resumed:
                        break  # else the beginning may be to blame, which somebody else left: once more, from the start
                except OSError as error:
                    if error.errno in (errno.ENOSPC, errno.EDQUOT):
                        raise NoRoom from error
                    failure = error
                    break
        assert failure is not None, "no origin at all"
        raise failure

    def _fill(self, file: StageFile, origin: Origin, fd: int) -> None:
        """Bring the part in `fd` to its full size from `origin`, going on where it ends."""
        digest = hashlib.sha256() if file.sha256 else None
        done = os.fstat(fd).st_size
        if done > file.size:
            os.ftruncate(fd, 0)
            done = 0
        if digest is not None:
            for offset in range(0, done, CHUNK_BYTES):
                digest.update(os.pread(fd, min(CHUNK_BYTES, done - offset), offset))
        with self.room.reserve(file.size - done) as held, contextlib.closing(origin.open(file, done)) as source:
            flushed = done
            while done < file.size:
                if self.stop.is_set():
                    raise Stopped
                size = min(CHUNK_BYTES, file.size - done)
                self.limit.wait(size)
                chunk = source.read(size)
                if not chunk:
                    raise OSError(errno.EIO, f"{file.origin} ends at byte {done} of {file.size}")
                _write_at(fd, chunk, done)
                done += len(chunk)
                held.written(len(chunk))
                self.told(len(chunk))
                if digest is not None:
                    digest.update(chunk)
                if done - flushed >= FLUSH_BYTES or done == file.size:
                    _flush(fd, source, flushed, done)
                    flushed = done
        if digest is not None and digest.hexdigest() != file.sha256:
            raise Damaged(
                f"{file.origin} (read from {origin.name}) does not have the sha256 that its folder's manifest.json names"
            )


def is_staged(file: StageFile) -> bool:
    """Whether a complete copy of this version is there."""
    try:
        return same_version(os.stat(file.copy), file.size, file.modified_ns)
    except OSError:
        return False


def _part_path(file: StageFile) -> Path:
    """One name per version of the original, so that no copy goes on with the bytes of another one.

    Without a checksum nothing would show what a power cut has done to the last pages: then no part outlives a boot.
    """
    boot = "" if file.sha256 else BOOT_ID.read_text()
    version = f"{file.origin} {file.size} {file.modified_ns} {file.sha256} {boot}"
    tag = hashlib.blake2b(version.encode(), digest_size=6).hexdigest()
    return file.copy.with_name(f".{file.copy.name}.{tag}.part")


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[int]:
    """The open, locked part; the lock goes with the process that holds it, however that ends. Raises Busy."""
    fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = os.fstat(fd).st_ino == os.stat(part).st_ino
        except (BlockingIOError, FileNotFoundError):
            raise Busy(size) from None
        if not same:  # it was renamed or removed between the two lines above
            raise Busy(size)
        yield fd
    finally:
        os.close(fd)


def _remove_older_parts(file: StageFile, keep: Path) -> None:
    """Parts of earlier versions that nobody writes any more: files of ours, by their name."""
    for part in file.copy.parent.glob(f".{file.copy.name}.{'[0-9a-f]' * 12}.part"):
        if part != keep:
            with contextlib.suppress(Busy, OSError), _locked(part):
                part.unlink()


def _write_at(fd: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written


def _flush(fd: int, source: BinaryIO, start: int, end: int) -> None:
    os.fdatasync(fd)
    os.posix_fadvise(fd, start, end - start, os.POSIX_FADV_DONTNEED)
    with contextlib.suppress(OSError, AttributeError):  # an object store or a peer: there is no file to forget
        os.posix_fadvise(source.fileno(), start, end - start, os.POSIX_FADV_DONTNEED)
