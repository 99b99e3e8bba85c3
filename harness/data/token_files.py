"""datatrove's token files: opening a data set of them and finding what is wrong with it before a run does.

`X.ds` holds little-endian uint16 or uint32 token ids, `X.ds.index` the end of each document in tokens (uint64,
cumulative), `X.ds.metadata` three lines: "tokenizer|bytes per token", tokens, the same for people. Index and metadata may
be missing. Only sizes and a few bytes of each file are read here.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.errors import DataError

DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
"""Bytes per token -> how numpy reads it."""
HEADER_THREADS = 16
"""Files looked at side by side: on a cold network file system each look costs a round trip or more."""
SNIFF_BYTES = 1 << 16


@dataclass(frozen=True)
class TokenFile:
    """One `.ds` file."""

    path: Path
    tokens: int


@dataclass(frozen=True)
class TokenSource:
    """One data set: token files of one width, sorted by name."""

    name: str
    """Its key in `data.sources`."""
    path: Path
    files: tuple[TokenFile, ...]
    token_size: int
    """Bytes per token: 2 or 4."""
    tokenizer: str | None
    """What the metadata calls the tokenizer; a path may be relative to `path`."""
    group: str = "sources"
    """Part of the config that names it: `data.sources` or `data.validation`."""

    @property
    def tokens(self) -> int:
        """Tokens in all files."""
        return sum(file.tokens for file in self.files)

    @property
    def key(self) -> str:
        """What messages call it."""
        return source_key(self.name, self.path, self.group)


def source_key(name: str, path: str | Path, group: str = "sources") -> str:
    """What messages call a source of `data.GROUP`."""
    return f"data.{group}.{name}.path={path}"


def index_path(path: Path) -> Path:
    """Where the ends of a token file's documents stand."""
    return path.with_name(path.name + ".index")


def open_source(name: str, path: str | Path) -> TokenSource:
    """Open a folder of token files, or one token file. Raises DataError that lists everything wrong with it."""
    source, problems = inspect_source(name, path)
    if source is None or problems:
        raise DataError("\n".join(problems))
    return source


def inspect_source(name: str, path: str | Path, group: str = "sources") -> tuple[TokenSource | None, list[str]]:
    """The source of `data.GROUP`, if it could be opened, and everything that is wrong with it."""
    key = source_key(name, path, group)
    if not str(path):
        return None, [f"data.{group}.{name}.path is not set. Give a folder that python -m harness.data prepare made."]
    try:
        files = _list_files(Path(path).expanduser(), key)
    except DataError as error:
        return None, [str(error)]
    with ThreadPoolExecutor(min(HEADER_THREADS, len(files))) as pool:
        headers = list(pool.map(_read_header, files))
    broken = [f"{key}: {header.error}" for header in headers if header.error]
    if broken:
        return None, broken
    widths = {header.width for header in headers}
    if len(widths) > 1:
        examples = ", ".join(
            f"{header.path.name} has {header.width} bytes per token ({header.width_from})"
            for header in (next(h for h in headers if h.width == width) for width in sorted(widths))
        )
        return None, [f"{key} mixes token widths: {examples}. Tokenise all files with one tokenizer."]
    width = widths.pop()
    problems = [f"{key}: {problem}" for header in headers for problem in _header_problems(header)]
    tokenizers = {header.tokenizer for header in headers if header.tokenizer}
    if len(tokenizers) > 1:
        problems.append(f"{key} mixes tokenizers: {', '.join(sorted(tokenizers))}. Use one for all files.")
    root = files[0].parent
    token_files = tuple(TokenFile(header.path, header.size // width) for header in headers)
    return TokenSource(name, root, token_files, width, min(tokenizers, default=None), group), problems


def _list_files(path: Path, key: str) -> list[Path]:
    try:
        if path.is_file():
            if path.suffix != ".ds":
                raise DataError(f"{key} is not a token file: its name must end in .ds")
            return [path]
        if not path.exists():
            raise DataError(f"{key} does not exist. Give a folder with .ds files (python -m harness.data prepare).")
        files = sorted(entry for entry in path.iterdir() if entry.name.endswith(".ds"))
    except OSError as error:
        raise DataError(f"{key} cannot be read: {error.strerror}") from None
    if not files:
        deeper = sorted({str(found.parent) for found in path.glob("*/*.ds")})
        hint = f" Did you mean {' or '.join(deeper[:3])}?" if deeper else ""
        raise DataError(f"{key} holds no .ds files. Give a folder that python -m harness.data prepare made.{hint}")
    return files


@dataclass
class _Header:
    """What one file says of itself; `error` when it cannot be read at all."""

    path: Path
    size: int = 0
    width: int = 2
    width_from: str = ""
    index_end: int | None = None
    """Where the index says that the last document ends, in tokens."""
    index_size: int = 0
    metadata_tokens: int | None = None
    tokenizer: str | None = None
    error: str = ""


def _read_header(path: Path) -> _Header:
    header = _Header(path)
    try:
        with path.open("rb") as file:
            header.size = os.fstat(file.fileno()).st_size
        _read_index(header)
        named = _read_metadata(header)
        if header.size == 0:
            header.error = f"{path.name} is empty. Remove it or tokenise again."
        elif named:
            header.width, header.width_from = named, "from its metadata"
        elif header.index_end and header.size in (2 * header.index_end, 4 * header.index_end):
            header.width, header.width_from = header.size // header.index_end, "from its index"
        else:
            header.width, header.width_from = _sniff_width(path), "guessed from its content"
    except OSError as error:
        header.error = f"{path.name} cannot be read: {error.strerror}"
    return header


def _read_index(header: _Header) -> None:
    index = index_path(header.path)
    if not index.exists():
        return
    with index.open("rb") as file:
        header.index_size = os.fstat(file.fileno()).st_size
        tail = os.pread(file.fileno(), 8, max(0, header.index_size - 8))
    header.index_end = int.from_bytes(tail, "little")


def _read_metadata(header: _Header) -> int | None:
    """Fill in tokenizer and tokens; returns bytes per token where the metadata says so (older files do not)."""
    metadata = header.path.with_name(header.path.name + ".metadata")
    if not metadata.exists():
        return None
    lines = metadata.read_text(encoding="utf-8", errors="replace").splitlines()
    name, _, width = lines[0].rpartition("|") if lines else ("", "", "")
    if width not in ("2", "4"):
        name, width = (lines[0] if lines else ""), ""
    if name and not name.startswith("Unknown Tokenizer"):
        header.tokenizer = name
    if len(lines) > 1 and lines[1].strip().isdigit():
        header.metadata_tokens = int(lines[1])
    return int(width) if width else None


def _sniff_width(path: Path) -> int:
    """Bytes per token by content: in uint32 ids every second uint16 is nearly zero, for any vocabulary under a million."""
    with path.open("rb") as file:
        halves = np.frombuffer(file.read(SNIFF_BYTES)[: SNIFF_BYTES // 4 * 4], dtype=np.uint8)
    high = halves[: len(halves) // 4 * 4].view("<u2")[1::2]
    return 4 if len(high) and int(high.max()) < 16 else 2


def _header_problems(header: _Header) -> list[str]:
    name, width = header.path.name, header.width
    if header.size % width:
        return [
            f"{name} has {header.size} bytes, no multiple of {width} bytes per token ({header.width_from}): "
            "the file is cut off. Copy or tokenise it again."
        ]
    tokens, problems = header.size // width, []
    if header.index_end is not None and (header.index_size % 8 or header.index_end != tokens):
        problems.append(
            f"{name} holds {tokens} tokens of {width} bytes, but its index ends at {header.index_end}: "
            "one of the two is cut off or from another run. Copy or tokenise it again."
        )
    if header.metadata_tokens is not None and header.metadata_tokens != tokens:
        problems.append(
            f"{name} holds {tokens} tokens of {width} bytes, but its metadata says {header.metadata_tokens}: "
            "the file is cut off or from another run. Copy or tokenise it again."
        )
    return problems
