"""Folders that token files come from, on a mounted file system or in an object store, seen alike."""

import json
import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from harness.data.errors import DataError

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
    except (OSError, ValueError) as error:
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
    import fsspec

    store, path = fsspec.core.url_to_fs(url)
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
