"""How much of each file the file system holds locally, and bringing back what it has moved to a slower tier.

Allocated blocks tell of a file that was released as a whole or in part; file systems that compress allocate fewer for
data that is all there. Lustre's and Weka's own commands are asked where the file lies on one of theirs: they know better.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK_BYTES = 512
"""Unit of st_blocks, whatever the file system's own is."""
COMMAND_SECONDS = 60.0
FILES_PER_COMMAND = 200
MOUNTS = Path("/proc/self/mounts")
READ_BYTES = 8 << 20
UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


@dataclass(frozen=True)
class FileResidency:
    """One file."""

    path: Path
    size: int
    disk: int
    """Bytes allocated for it."""
    resident: int
    """Bytes that can be read without waiting for another tier."""


def residency(paths: Sequence[Path], mounts: Path = MOUNTS) -> list[FileResidency]:
    """Every file's size and resident bytes. Raises OSError where one can't be looked at; may hang with its file system."""
    stats = {path: path.stat() for path in paths}
    sizes = {path: stat.st_size for path, stat in stats.items()}
    blocks = {path: stat.st_blocks * BLOCK_BYTES for path, stat in stats.items()}
    found = {path: min(sizes[path], blocks[path]) for path in paths}
    for kind, group in _by_file_system(paths, mounts).items():
        for some in _batches(group):
            shares = _ASK[kind](some) if kind in _ASK else {}
            found.update({path: int(share * sizes[path]) for path, share in shares.items()})
    return [FileResidency(path, sizes[path], blocks[path], found[path]) for path in paths]


def total(files: Iterable[FileResidency]) -> tuple[int, int]:
    """(bytes, resident bytes) of all."""
    listed = list(files)
    return sum(file.size for file in listed), sum(file.resident for file in listed)


def token_files(path: str | Path) -> list[Path]:
    """The token files of a source's path: those in a folder by name, or the file itself. Raises OSError."""
    place = Path(path).expanduser()
    return sorted(place.glob("*.ds")) if place.is_dir() else [place]


def recall(file: FileResidency, told: Callable[[int], None], mounts: Path = MOUNTS) -> None:
    """Bring a file back: ask the tier for it, then read it, which waits until it is there. Raises OSError.

    `told` is called with the bytes that have just been read.
    """
    for kind in _by_file_system([file.path], mounts):
        if kind in _RECALL:
            _run([*_RECALL[kind], str(file.path)])
    with open(file.path, "rb", buffering=0) as source:
        while block := source.read(READ_BYTES):
            told(len(block))


def _by_file_system(paths: Sequence[Path], mounts: Path) -> dict[str, list[Path]]:
    """Type of the file system -> the files on it."""
    table: list[tuple[str, str]] = []
    try:
        for line in mounts.read_text().splitlines():  # device, mount point, type, ...
            _, point, kind, *_ = line.split()
            table.append((re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), point), kind))
    except (OSError, ValueError):
        return {}
    table.sort(key=lambda entry: -len(entry[0]))
    groups: dict[str, list[Path]] = {}
    for path in paths:
        place = os.path.realpath(path)
        kind = next((kind for point, kind in table if place == point or place.startswith(point.rstrip("/") + "/")), "")
        groups.setdefault(kind, []).append(path)
    return groups


def _batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    for begin in range(0, len(paths), FILES_PER_COMMAND):
        yield paths[begin : begin + FILES_PER_COMMAND]


def _lustre(paths: Sequence[Path]) -> dict[Path, float]:
    """`lfs hsm_state`: a released file's data is in the archive alone."""
    output = _run(["lfs", "hsm_state", *map(str, paths)])
    states: dict[str, str] = {}
    for line in (output or "").splitlines():
        name, found, flags = line.rpartition(": (")
        if found:
            states[name] = flags
    return {path: 0.0 for path in paths if "released" in states.get(str(path), "").split()}


def _weka(paths: Sequence[Path]) -> dict[Path, float]:
    """`weka fs tier location`: a table, with the bytes of each file on SSD."""
    lines = [
        line for line in (_run(["weka", "fs", "tier", "location", *map(str, paths)]) or "").splitlines() if line.strip()
    ]
    if not lines:
        return {}
    header, *rows = [re.split(r"\s{2,}", line.strip()) for line in lines]
    wanted = {str(path): path for path in paths}
    shares: dict[Path, float] = {}
    for row in rows:
        cells = dict(zip(header, row, strict=False))
        path, size = wanted.get(cells.get("PATH", "")), _bytes(cells.get("FILE SIZE", ""))
        local = [_bytes(value) for name, value in cells.items() if "SSD" in name]
        if path is not None and size and local and None not in local:
            shares[path] = min(1.0, sum(value for value in local if value is not None) / size)
    return shares


def _bytes(text: str) -> float | None:
    """`102.39 MB` as a number."""
    number, _, unit = text.partition(" ")
    try:
        return float(number) * UNITS[unit.upper() or "B"]
    except (ValueError, KeyError):
        return None


_ASK: dict[str, Callable[[Sequence[Path]], dict[Path, float]]] = {"lustre": _lustre, "wekafs": _weka}
"""Type of file system -> the share of each file that its own command says is local; absent: it does not say."""
_RECALL = {"lustre": ["lfs", "hsm_restore"], "wekafs": ["weka", "fs", "tier", "fetch"]}


def _run(command: list[str]) -> str | None:
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
