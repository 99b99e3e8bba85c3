"""Folders that token files come from, on a mounted file system or in an object store, seen alike."""

import errno
import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from harness.data.errors import DataError

KEPT_BYTES, KEPT_READS = 1 << 12, 1 << 16
"""Reads from an object store of up to so many bytes are remembered, and how many of them."""
MANIFEST = "manifest.json"
"""What `harness.data prepare` writes last: every file with its size and sha256."""


@dataclass(frozen=True)
class OriginFile:
    """A file in a folder."""

    name: str
    size: int
    modified_ns: int | None
    """None where the store tells none."""


def is_url(path: str) -> bool:
    """Whether `path` names an object store (`s3://bucket/folder`) rather than a mounted folder."""
    return "://" in path


def join(folder: str, name: str) -> str:
    """Path or URL of a file in a folder."""
    return f"{folder.rstrip('/')}/{name}"


def split(path: str) -> tuple[str, str | None]:
    """(folder, name) where `path` is one token file, (path, None) where it is a folder; paths become absolute."""
    if not is_url(path):
        path = os.path.abspath(os.path.expanduser(path))
    if path.endswith(".ds") and (is_url(path) or not os.path.isdir(path)):
        folder, _, name = path.rpartition("/")
        return folder, name
    return path.rstrip("/"), None


def list_folder(folder: str, key: str, *, missing_ok: bool = False) -> dict[str, OriginFile]:
    """The files right in `folder` by name; none where it is not there and may be missing. Raises DataError, which names
    `key`."""
    try:
        return _list_url(folder) if is_url(folder) else _list_local(folder)
    except ImportError as error:
        raise DataError(f"{key}: {error}. Install the package that reads it.") from None
    except Exception as error:  # a store's library may raise anything
        if missing_ok and isinstance(error, FileNotFoundError | NotADirectoryError):
            return {}
        raise DataError(f"{key} cannot be read: {getattr(error, 'strerror', None) or error}") from None


def open_at(path: str, offset: int) -> BinaryIO:
    """A file opened for reading at `offset`. Raises OSError."""
    if is_url(path):
        import fsspec

        file: BinaryIO = fsspec.open(path, "rb").open()
    else:
        file = open(path, "rb", buffering=0)  # noqa: SIM115 (the caller closes it)
    file.seek(offset)
    return file


class Folder(Protocol):
    """A folder that files are read in."""

    def size(self, name: str) -> int | None:
        """Bytes of a file; None: it is not there. Raises OSError."""

    def read(self, name: str, offset: int, size: int) -> bytes:
        """Up to `size` bytes from `offset` on, fewer where the file ends. Raises OSError."""

    def open(self, name: str) -> BinaryIO:
        """A file opened to be read from its start. Raises OSError."""


@dataclass(frozen=True)
class MountedFolder:
    """On a mounted file system."""

    path: Path

    def size(self, name: str) -> int | None:
        try:
            with open(self.path / name, "rb", buffering=0) as file:  # not stat: who may not read it should hear so
                return os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None

    def read(self, name: str, offset: int, size: int) -> bytes:
        with open(self.path / name, "rb", buffering=0) as file:
            return os.pread(file.fileno(), size, offset)

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")


class StoreFolder:
    """In an object store. Sizes are known from one listing; a read asks for no more than it returns."""

    def __init__(self, url: str, key: str) -> None:
        """Raises DataError, which names `key`."""
        self.url, self._key = url, key
        self.files = list_folder(url, key)
        self._store, self._path = _store_of(url)  # one connection for all threads
        """What lies right in it; folders below are listed when something in them is asked for."""
        self._deeper: dict[str, dict[str, OriginFile]] = {}

    def size(self, name: str) -> int | None:
        found = self._find(name)
        return found.size if found else None

    def read(self, name: str, offset: int, size: int) -> bytes:
        found = self._find(name)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), join(self.url, name))
        end = min(offset + size, found.size)
        if offset >= end:
            return b""
        key = (join(self.url, name), found.size, found.modified_ns, offset, end)
        data = _kept.get(key)
        if data is None:
            data = self._range(name, offset, end)
            if len(data) <= KEPT_BYTES and len(_kept) < KEPT_READS:
                _kept[key] = data
        return data

    def open(self, name: str) -> BinaryIO:
        return open_at(join(self.url, name), 0)

    def inside(self, folder: str) -> dict[str, OriginFile]:
        """The files right in a folder below this one, by name; none where there is no such folder. Raises DataError."""
        if folder not in self._deeper:
            self._deeper[folder] = list_folder(join(self.url, folder), self._key, missing_ok=True)
        return self._deeper[folder]

    def _range(self, name: str, begin: int, end: int) -> bytes:
        try:
            data: bytes = self._store.cat_file(f"{self._path}/{name}", start=begin, end=end)
        except Exception as error:  # a store's library may raise anything
            number, why = getattr(error, "errno", None), getattr(error, "strerror", None)
            raise OSError(number or errno.EIO, why or f"{type(error).__name__}: {error}", name) from error
        if len(data) != end - begin:
            raise OSError(errno.EIO, f"gave {len(data)} of {end - begin} bytes", name)
        return data

    def _find(self, name: str) -> OriginFile | None:
        folder, below, last = name.rpartition("/")
        return (self.inside(folder) if below else self.files).get(last)


_kept: dict[tuple[str, int, int | None, int, int], bytes] = {}
"""What small reads gave, by object, size, time and range: a launch looks at the same headers several times."""


def _store_of(url: str) -> tuple[Any, str]:
    """fsspec's file system, and the path in it."""
    import fsspec

    store, path = fsspec.core.url_to_fs(url)
    return store, path


def manifest_sums(folder: str, files: dict[str, OriginFile]) -> dict[str, str]:
    """Name -> sha256 as the folder's manifest has them; empty where it has none that can be read. Raises OSError."""
    if MANIFEST not in files:
        return {}
    with open_at(join(folder, MANIFEST), 0) as file:
        text = file.read()
    try:
        return {entry["name"]: entry["sha256"] for entry in json.loads(text)["files"] if "sha256" in entry}
    except (ValueError, KeyError, TypeError):
        return {}


def _list_local(folder: str) -> dict[str, OriginFile]:
    found = {}
    for path in Path(folder).iterdir():
        if path.is_file():
            stat = path.stat()
            found[path.name] = OriginFile(path.name, stat.st_size, stat.st_mtime_ns)
    return found


def _list_url(url: str) -> dict[str, OriginFile]:
    store, path = _store_of(url)
    entries: list[dict[str, Any]] = store.ls(path, detail=True)
    files = [entry for entry in entries if entry["type"] == "file"]
    names = [entry["name"].rstrip("/").rpartition("/")[2] for entry in files]
    return {
        name: OriginFile(name, entry["size"], _modified_ns(entry)) for name, entry in zip(names, files, strict=True)
    }


def _modified_ns(entry: dict[str, Any]) -> int | None:
    """Object stores call it differently; some tell none."""
    time = entry.get("LastModified", entry.get("mtime"))
    if isinstance(time, datetime):
        time = time.timestamp()
    return int(time * 1e9) if isinstance(time, int | float) else None
