"""datatrove's token files: opening a data set of them and finding what is wrong with it before a run does.

`X.ds` holds little-endian uint16 or uint32 token ids, `X.ds.index` the end of each document in tokens (uint64,
cumulative), `X.ds.metadata` three lines: "tokenizer|bytes per token", tokens, the same for people. Index and metadata may
be missing. `X.ds.loss`, a mask of the loss, is refused. Files of tasks without documents are passed over. Only sizes and
a few bytes of each file are read here.
"""

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.errors import DataError
from harness.data.origins import Folder, MountedFolder, StoreFolder, is_url, split
from harness.data.stage_paths import read_path

DTYPES: dict[int, np.dtype[Any]] = {2: np.dtype("<u2"), 4: np.dtype("<u4")}
"""Bytes per token -> how numpy reads it."""
HEADER_THREADS = 16
"""Files looked at side by side: on a cold network file system each look costs a round trip or more."""
SNIFF_BYTES = 1 << 16


@dataclass(frozen=True)
class TokenFile:
    """One `.ds` file."""

    path: Path
    """Where it is read. Of a source whose outline was read in an object store, only the name means something."""
    tokens: int


@dataclass(frozen=True)
class TokenSource:
    """One data set: token files of one width, sorted by name."""

    name: str
    """Its key in `data.sources`."""
    path: Path
    """The folder; of a source in an object store that of its copies on this node."""
    files: tuple[TokenFile, ...]
    token_size: int
    """Bytes per token: 2 or 4."""
    tokenizer: str | None
    """What the metadata calls the tokenizer; a path may be relative to `path`."""
    group: str = "sources"
    """Part of the config that names it: `data.sources` or `data.validation`."""
    url: str | None = None
    """What the config names, where that is in an object store."""
    store: StoreFolder | None = field(default=None, compare=False)
    """Where it was looked at, where that was the object store itself: its copies need not be on this machine."""

    @property
    def folder(self) -> Folder:
        """Reads its files, wherever it was looked at."""
        return self.store or MountedFolder(self.path)

    @property
    def tokens(self) -> int:
        """Tokens in all files."""
        return sum(file.tokens for file in self.files)

    @property
    def key(self) -> str:
        """What messages call it."""
        return source_key(self.name, self.url or self.path, self.group)


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


def inspect_source(
    name: str, path: str | Path, group: str = "sources", stage_to: str | None = None
) -> tuple[TokenSource | None, list[str]]:
    """The source of `data.GROUP`, if it could be opened, and everything that is wrong with it.

    One in an object store is looked at there, which takes a listing and a few small reads per file; with `stage_to`, its
    copies below that folder are opened instead.
    """
    key = source_key(name, path, group)
    if not str(path):
        return None, [f"data.{group}.{name}.path is not set. Give a folder that python -m harness.data prepare made."]
    url = str(path) if is_url(str(path)) else None
    store: StoreFolder | None = None
    try:
        if url is None:
            files = _list_files(Path(path).expanduser(), key)
        elif stage_to is not None:
            files = _list_copies(url, stage_to, key)
        else:
            store, files = _list_store(url, key)
    except DataError as error:
        return None, [str(error)]
    folder: Folder = store or MountedFolder(files[0].parent)
    with ThreadPoolExecutor(min(HEADER_THREADS, len(files))) as pool:
        headers = list(pool.map(lambda file: _read_header(folder, file), files))
    broken = [f"{key}: {header.error}" for header in headers if header.error]
    if broken:
        return None, broken
    if masked := [header.path.name for header in headers if header.masked]:
        return None, [
            f"{key}: {masked[0]}.loss: a loss mask, which training does not apply ({len(masked)} of {len(headers)} files have one): "
            "what it masks would be trained on. Tokenise without save_loss_metadata, or remove the .loss files to train on "
            "every token."
        ]
    headers = [header for header in headers if not header.nothing]
    if not headers:
        return None, [f"{key} holds no tokens: all of its {len(files)} .ds files are empty. Tokenise again."]
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
    return TokenSource(name, root, token_files, width, min(tokenizers, default=None), group, url, store), problems


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


def _list_copies(url: str, stage_to: str, key: str) -> list[Path]:
    copies = Path(read_path(url, stage_to))
    try:
        if copies.is_file():
            return [copies]
        files = sorted(copies.glob("*.ds"))
    except OSError as error:
        raise DataError(f"{key}: its copies in {copies} cannot be read: {error.strerror}") from None
    if not files:
        raise DataError(
            f"{key}: has no copies in data.stage_to={stage_to} on this machine ({copies}). A run's agent makes them before "
            "training starts; to have them here, run python -m harness.data stage with the same overrides, or --run RUN."
        )
    return files


def _list_store(url: str, key: str) -> tuple[StoreFolder, list[Path]]:
    location, only = split(url)
    store = StoreFolder(location, key)
    names = sorted(name for name in store.files if name.endswith(".ds") and only in (None, name))
    if not names:
        raise DataError(f"{key} holds no .ds files. Give a folder that python -m harness.data prepare made.")
    return store, [Path(location) / name for name in names]


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
    masked: bool = False
    """A loss mask lies beside it."""
    error: str = ""

    @property
    def nothing(self) -> bool:
        """What datatrove writes for a task without documents: no tokens, and index or metadata say so."""
        told = [count for count in (self.index_end, self.metadata_tokens) if count is not None]
        return self.size == 0 and bool(told) and not any(told)


def _read_header(folder: Folder, path: Path) -> _Header:
    header, name = _Header(path), path.name
    try:
        size = folder.size(name)
        if size is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        header.size = size
        _read_index(folder, header)
        named = _read_metadata(folder, header)
        header.masked = folder.size(f"{name}.loss") is not None
        if header.nothing:
            pass
        elif header.size == 0:
            header.error = f"{name} is empty. Remove it or tokenise again."
        elif named:
            header.width, header.width_from = named, "from its metadata"
        elif header.index_end and header.size in (2 * header.index_end, 4 * header.index_end):
            header.width, header.width_from = header.size // header.index_end, "from its index"
        else:
            header.width, header.width_from = _sniff_width(folder, name), "guessed from its content"
    except OSError as error:
        header.error = f"{name} cannot be read: {error.strerror or error}"
    return header


def _read_index(folder: Folder, header: _Header) -> None:
    name = index_path(header.path).name
    size = folder.size(name)
    if size is not None:
        header.index_size = size
        header.index_end = int.from_bytes(folder.read(name, max(0, size - 8), 8), "little")


def _read_metadata(folder: Folder, header: _Header) -> int | None:
    """Fill in tokenizer and tokens; returns bytes per token where the metadata says so (older files do not)."""
    metadata = f"{header.path.name}.metadata"
    size = folder.size(metadata)
    if size is None:
        return None
    lines = folder.read(metadata, 0, size).decode("utf-8", errors="replace").splitlines()
    name, _, width = lines[0].rpartition("|") if lines else ("", "", "")
    if width not in ("2", "4"):
        name, width = (lines[0] if lines else ""), ""
    if name and not name.startswith("Unknown Tokenizer"):
        header.tokenizer = name
    if len(lines) > 1 and lines[1].strip().isdigit():
        header.metadata_tokens = int(lines[1])
    return int(width) if width else None


def _sniff_width(folder: Folder, name: str) -> int:
    """Bytes per token by content: in uint32 ids every second uint16 is nearly zero, for any vocabulary under a million."""
    content = folder.read(name, 0, SNIFF_BYTES)
    high = np.frombuffer(content[: len(content) // 4 * 4], "<u2")[1::2]
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
