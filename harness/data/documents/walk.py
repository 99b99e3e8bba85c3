"""Finding the files of an input folder: links are followed, and what is not a file to read is listed with its reason."""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field

from harness.data.documents.passed_over import PassedOver, printable
from harness.data.errors import DataError


@dataclass
class FoundFile:
    """One regular file, or a link to one."""

    path: str
    name: str
    """Relative to the folder that was walked."""
    size: int
    modified_ns: int


@dataclass
class Found:
    """All that lies below a folder, sorted by name at each level."""

    files: list[FoundFile] = field(default_factory=list)
    passed_over: list[PassedOver] = field(default_factory=list)


def walk(folder: str, but: Iterable[str] = ()) -> Found:
    """All files at any depth. Links to files and folders are followed, as `find -L` does.

    Hidden files and folders, links that lead back to a folder above themselves, and what is not a regular file (a pipe
    would block its reader) are passed over. Raises DataError for a folder that cannot be read and for a link to nothing:
    documents are missing. `but`: paths of folders that are not part of it.
    """
    found = Found()
    _walk(folder, "", {_identity(os.stat(folder))}, set(but), found)
    return found


def look_at(path: str) -> FoundFile:
    """A file that the user named. Raises OSError."""
    info = os.stat(path)
    return FoundFile(path, os.path.basename(path), info.st_size, info.st_mtime_ns)


def _walk(folder: str, inside: str, above: set[tuple[int, int]], but: set[str], found: Found) -> None:
    try:
        with os.scandir(folder) as entries:
            listing = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"--input {printable(folder)}: cannot be read: {error.strerror}") from None
    for entry in listing:
        name = os.path.join(inside, entry.name)
        if entry.path in but:
            continue
        if entry.name.startswith("."):
            _pass(found, entry.path + "/" * entry.is_dir(), "hidden")
        elif (info := _stat(entry)) is None:
            _pass(found, entry.path, "loop of links")
        elif stat.S_ISDIR(info.st_mode):
            if _identity(info) in above:
                _pass(found, f"{entry.path}/", "loop of links")
            else:
                _walk(entry.path, name, above | {_identity(info)}, but, found)
        elif stat.S_ISREG(info.st_mode):
            found.files.append(FoundFile(entry.path, name, info.st_size, info.st_mtime_ns))
        else:
            _pass(found, entry.path, "not a regular file")


def _stat(entry: "os.DirEntry[str]") -> os.stat_result | None:
    """None: a link that leads to itself."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        hint = " (a link to nothing). Repair or remove the link." if entry.is_symlink() else ""
        raise DataError(f"--input {printable(entry.path)}: cannot be read: {error.strerror}{hint}") from None


def _identity(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def _pass(found: Found, path: str, reason: str) -> None:
    found.passed_over.append(PassedOver(printable(path), reason))
