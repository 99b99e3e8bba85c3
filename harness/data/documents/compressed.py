"""Opening files of documents, compressed or not. An error while reading names the file, whatever library raises it."""

import bz2
import contextlib
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from harness.data.documents.passed_over import printable
from harness.data.errors import DataError


def _open_zstd(path: str) -> IO[bytes]:
    import pyarrow as pa

    stream: Any = pa.CompressedInputStream(open(path, "rb"), "zstd")  # noqa: SIM115 (closed with the stream)
    return io.BufferedReader(stream)


READ_BYTES = 1 << 17


class _Streams(io.RawIOBase):
    """Decompresses streams that follow one another in a file. Python's own readers take damage after the first for its end."""

    def __init__(self, path: str, new: Callable[[], Any]) -> None:
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 (closed in `close`)
        self._new = new
        self._decompressor = new()
        self._fed = b""
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Raises EOFError where the file ends inside a stream, and what the decompressor raises for damage."""
        while True:
            if self._decompressor.eof:
                self._fed = self._decompressor.unused_data
                self._decompressor, self._begun = self._new(), False
            if not self._fed and (not self._begun or self._decompressor.needs_input):
                self._fed = self._file.read(READ_BYTES)
                if not self._fed and self._begun:
                    raise EOFError("it ends before its end-of-stream marker")
                if not self._fed:
                    return 0
            if not self._begun:
                self._fed = self._fed.lstrip(b"\0")  # padding between streams
                self._begun = bool(self._fed)
                if not self._begun:
                    continue
            data = self._decompressor.decompress(self._fed, len(buffer))
            self._fed = b""
            if data:
                buffer[: len(data)] = data
                return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _open_bz2(path: str) -> IO[bytes]:
    return io.BufferedReader(_Streams(path, bz2.BZ2Decompressor))


def _open_xz(path: str) -> IO[bytes]:
    return io.BufferedReader(_Streams(path, lzma.LZMADecompressor))


def _open_plain(path: str) -> IO[bytes]:
    return open(path, "rb")


OPENERS: dict[str, Callable[[str], Any]] = {
    ".gz": gzip.open,
    ".bz2": _open_bz2,
    ".xz": _open_xz,
    ".zst": _open_zstd,
    ".zstd": _open_zstd,
}
"""Suffix -> opens such a file for reading; files of several streams, one after the other, are read to their end."""
NAMES = {"": "text", ".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd"}


def split_compression(name: str) -> tuple[str, str]:
    """A file's name in lower case without the suffix of its compression, and that suffix; "": it is not compressed."""
    name = name.lower()
    for suffix in OPENERS:
        if name.endswith(suffix):
            return name.removesuffix(suffix), suffix
    return name, ""


@contextlib.contextmanager
def open_documents(path: str) -> Iterator[IO[bytes]]:
    """The decompressed bytes of a file. Raises DataError or OSError, which name the file, for what goes wrong while it is open."""
    _, compression = split_compression(path)
    opener = OPENERS[compression] if compression and os.path.getsize(path) else _open_plain
    with reading(path, f"the {NAMES[compression]} file"), opener(path) as file:
        yield file


@contextlib.contextmanager
def reading(path: str, what: str) -> Iterator[None]:
    """Makes every error name `path`: a DataError for what the libraries find in it, an OSError of the file system.

    `what`: what messages call it."""
    import pyarrow as pa

    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not raised by a library over what it has read
            raise OSError(error.errno, os.strerror(error.errno), path) from None
        raise DataError(
            f"{printable(path)}: {what} is damaged or truncated: {error}. Copy it again, or leave it out."
        ) from None
