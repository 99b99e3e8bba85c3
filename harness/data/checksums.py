"""Checksums of a token file's blocks, so that any stretch of it can be checked when it is read.

`X.ds.sums` stands beside `X.ds`: a header of 40 bytes, then 4 bytes for each block of 4 KiB, little-endian. The header
holds magic, version, algorithm, bytes of a block, bytes of the token file, and a checksum of the table that follows.

Blocks are as large as a page: a file system reads whole pages, so a checked read of a window costs the storage nothing
more than the window itself. The table is a thousandth of the data. Nothing has to be remembered of what was checked
already: every read is checked, at 0.15 microseconds a block.
"""

import errno
import os
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash

from harness.data.errors import DataError
from harness.run.files import write_atomic

SUFFIX = ".sums"
BLOCK_BYTES = 4096
MAGIC = b"HARNSUMS"
VERSION = 1
XXH3_LOW32 = 1
"""The low 32 bits of xxh3_64: the one algorithm so far."""
CHUNK_BYTES = 8 << 20
"""Read at once when a whole file is gone through; a multiple of BLOCK_BYTES."""

_HEADER = struct.Struct("<8sHHIQQ8x")
_SUM = np.dtype("<u4")


def sums_path(path: str | os.PathLike[str]) -> Path:
    """Where the checksums of the token file `path` stand."""
    return Path(f"{os.fspath(path)}{SUFFIX}")


def block_sums(data: bytes | bytearray | memoryview, block_bytes: int = BLOCK_BYTES) -> np.ndarray:
    """The checksum of each block of `data`, which begins at a block's start: uint32 [blocks]; the last may be short."""
    view = memoryview(data).cast("B")
    digest = xxhash.xxh3_64_intdigest
    sums = [digest(view[at : at + block_bytes]) & 0xFFFFFFFF for at in range(0, len(view), block_bytes)]
    return np.array(sums, dtype=_SUM)


class ChecksumWriter:
    """Makes the checksums of a file whose bytes pass by in order, in pieces of any size: while it is written or copied."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []
        self._rest = b""
        self._size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes of the file."""
        self._size += len(data)
        whole = self._rest + bytes(data) if self._rest else data
        full = len(whole) // BLOCK_BYTES * BLOCK_BYTES
        self._parts.append(block_sums(memoryview(whole)[:full]))
        self._rest = bytes(memoryview(whole)[full:])

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write what belongs beside the token file `path`, whole or not at all. Returns its path. Raises OSError."""
        table = np.concatenate([*self._parts, block_sums(self._rest)]).astype(_SUM).tobytes()
        header = _HEADER.pack(MAGIC, VERSION, XXH3_LOW32, BLOCK_BYTES, self._size, xxhash.xxh3_64_intdigest(table))
        target = sums_path(path)
        write_atomic(target, header + table)
        return target


def write_checksums(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> Path:
    """Read the token file `path` and write its checksums beside it. `progress` is told of bytes done since the last call.

    Returns the path of the checksums. Raises OSError.
    """
    writer = ChecksumWriter()
    for chunk in _chunks(path):
        writer.update(chunk)
        if progress is not None:
            progress(len(chunk))
    return writer.write(path)


@dataclass(frozen=True)
class Mismatch:
    """A block that is not what it was when the checksums were made."""

    block: int
    offset: int
    """Bytes before the block in the file."""
    expected: int
    found: int

    def __str__(self) -> str:
        return f"block {self.block} at offset {self.offset} has the checksum {self.found:08x}, and {self.expected:08x} is right"


class Checksums:
    """The open checksums of one token file. Safe to use from several threads."""

    def __init__(self, name: str, read: Callable[[int, int], bytes], size: int, close: Callable[[], None]) -> None:
        """Checksums in a file of `size` bytes that `read(offset, length)` reads; `name` is what messages call it.

        Raises what `read` raises, or DataError where it is damaged or from a version that is not known.
        """
        self.name = name
        self._read = read
        self.close = close
        """Call it when done; nothing may be asked afterwards."""
        self.block_bytes, self.file_size, self._table_digest = _parse_header(name, read(0, _HEADER.size), size)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Checksums | None":
        """The checksums of the token file `path`; None: there are none.

        Raises OSError, or DataError where what is there is damaged or from a version that is not known. The token file
        itself is not looked at.
        """
        place = sums_path(path)
        try:
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            size = os.fstat(handle).st_size
            return cls(
                str(place), lambda offset, length: os.pread(handle, length, offset), size, lambda: os.close(handle)
            )
        except BaseException:
            os.close(handle)
            raise

    def cover(self, offset: int, length: int) -> tuple[int, int]:
        """First and last byte (not included) of the blocks that hold `length` bytes from `offset` on: what to read."""
        first = offset // self.block_bytes
        last = -(-(offset + length) // self.block_bytes)
        return first * self.block_bytes, min(last * self.block_bytes, self.file_size)

    def verify(self, begin: int, data: bytes | bytearray | memoryview) -> Mismatch | None:
        """The first block of `data` that is not right; `data` is what a span of `cover` holds, and `begin` where it starts.

        Raises OSError where the checksums cannot be read.
        """
        first, size = begin // self.block_bytes, self.block_bytes
        digest = xxhash.xxh3_64_intdigest
        sums = [digest(data[at : at + size]) & 0xFFFFFFFF for at in range(0, len(data), size)]
        table = self._table(first, len(sums))
        if table == struct.pack(f"<{len(sums)}I", *sums):
            return None
        found, expected = np.array(sums, dtype=_SUM), np.frombuffer(table, _SUM)
        at = int(np.flatnonzero(found != expected)[0])
        return Mismatch(first + at, begin + at * self.block_bytes, int(expected[at]), int(found[at]))

    def damaged(self) -> bool:
        """Whether the table itself is not what was written: then a mismatch says nothing about the token file."""
        blocks = -(-self.file_size // self.block_bytes)
        return xxhash.xxh3_64_intdigest(self._table(0, blocks)) != self._table_digest

    def _table(self, first: int, count: int) -> bytes:
        """Checksums of blocks [first, first + count), 4 bytes each. Raises OSError."""
        data = self._read(_HEADER.size + first * _SUM.itemsize, count * _SUM.itemsize)
        if len(data) != count * _SUM.itemsize:
            raise OSError(errno.EIO, f"{self.name} is cut off")
        return data


def verify_file(path: str | os.PathLike[str], progress: Callable[[int], None] | None = None) -> str | None:
    """What is wrong with the token file `path` by its checksums; None: all of it is right, or it has no checksums.

    Reads the whole file; `progress` is told of bytes done since the last call. Raises OSError.
    """
    try:
        sums = Checksums.open(path)
    except DataError as error:
        return str(error)
    if sums is None:
        return None
    try:
        size = os.stat(path).st_size
        if size != sums.file_size:
            return f"{path} has {size} bytes, and {sums.file_size} when its checksums were made"
        if sums.damaged():
            return f"{sums.name} is damaged: copy it again, or write it again once you know that {path} is right"
        begin = 0
        for chunk in _chunks(path):
            if (mismatch := sums.verify(begin, chunk)) is not None:
                return f"{path} is damaged: {mismatch}. Copy or tokenise it again"
            begin += len(chunk)
            if progress is not None:
                progress(len(chunk))
        return None
    finally:
        sums.close()


def _parse_header(name: str, header: bytes, found: int) -> tuple[int, int, int]:
    """Bytes of a block, bytes of the token file, checksum of the table; `found`: bytes of the file of checksums."""
    again = "Write it again (harness.data.checksums.write_checksums), or remove it to read the tokens unchecked."
    if len(header) < _HEADER.size or header[: len(MAGIC)] != MAGIC:
        raise DataError(f"{name} is no file of checksums, or cut off. {again}")
    _, version, algorithm, block_bytes, size, digest = _HEADER.unpack(header)
    if (version, algorithm) != (VERSION, XXH3_LOW32) or block_bytes < 1:
        raise DataError(
            f"{name} has version {version}, algorithm {algorithm} and blocks of {block_bytes} bytes; known are version "
            f"{VERSION} and algorithm {XXH3_LOW32}. {again}"
        )
    expected = _HEADER.size + -(-size // block_bytes) * _SUM.itemsize
    if found != expected:
        raise DataError(f"{name} has {found} bytes where {expected} would be right: it is cut off. {again}")
    return block_bytes, size, digest


def _chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
