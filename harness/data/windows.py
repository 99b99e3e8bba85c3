"""A source cut into samples, and where in its files the tokens of each lie."""

from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.schema import DataConfig, Packing
from harness.data.errors import DataError
from harness.data.token_files import HEADER_THREADS, TokenSource, index_path, inspect_source


@dataclass(frozen=True)
class Piece:
    """Tokens that lie one after the other in one file."""

    file: int
    """Number of the file in its source."""
    offset: int
    """Bytes before the first token."""
    tokens: int


class Windows:
    """A source cut into samples of `seq_len` + 1 tokens at a stride of `seq_len`: within a file each token but the first
    is predicted exactly once. No window crosses files; what is left at the end of a file is not used."""

    padded = False
    """Whether windows may hold fewer than `seq_len` + 1 tokens."""

    def __init__(self, source: TokenSource, seq_len: int) -> None:
        self.source = source
        self.seq_len = seq_len
        self._ends = list(accumulate(max(0, file.tokens - 1) // seq_len for file in source.files))

    @property
    def count(self) -> int:
        """Windows in the source."""
        return self._ends[-1] if self._ends else 0

    def pieces(self, window: int) -> tuple[Piece, ...]:
        """Where the tokens of `window` lie, in their order. Raises IndexError."""
        if not 0 <= window < self.count:
            raise IndexError(f"window {window} of {self.count} in source {self.source.name}")
        number = bisect_right(self._ends, window)
        first = self._ends[number - 1] if number else 0
        return (Piece(number, (window - first) * self.seq_len * self.source.token_size, self.seq_len + 1),)

    def targets(self, windows: np.ndarray) -> int:
        """Tokens that are predicted in all of `windows`, int64 [n], together."""
        return len(windows) * self.seq_len

    @property
    def identity(self) -> dict[str, Any]:
        """What the order depends on beside the source and `seq_len`, as JSON."""
        return {}

    @property
    def wasted(self) -> float:
        """Share of the source's tokens that no window holds, or of the windows' places that hold none."""
        used = sum(max(0, file.tokens - 1) // self.seq_len * self.seq_len + 1 for file in self.source.files)
        return max(0, self.source.tokens - used) / max(1, self.source.tokens)


def open_sources(
    paths: Iterable[tuple[str, str | Path]],
    seq_len: int,
    group: str = "sources",
    packing: Packing = Packing.chunk,
    stage_to: str | None = None,
) -> list[TokenSource]:
    """Open all (name, path) pairs of `data.GROUP`, in order; `stage_to` as for `inspect_source`. Raises DataError that lists
    everything wrong with any of them."""
    sources, problems = [], []
    for name, path in paths:
        source, found = inspect_source(name, path, group, stage_to)
        problems += found or window_problems(source, seq_len, packing)
        sources.append(source)
    if problems:
        raise DataError("\n".join(problems))
    return [source for source in sources if source is not None]


def packing_of(data: DataConfig, source: TokenSource) -> Packing:
    """How a source is cut: what is held out in chunks always, so that its loss can be compared."""
    return data.packing if source.group == "sources" else Packing.chunk


def window_problems(source: TokenSource | None, seq_len: int, packing: Packing = Packing.chunk) -> list[str]:
    """Complains of a source that is too small for a single sample, or lacks what `packing` needs."""
    if source is None:
        return []
    if packing is Packing.best_fit:
        return _index_problems(source)
    if Windows(source, seq_len).count:
        return []
    longest = max(file.tokens for file in source.files)
    return [
        f"{source.key} holds no sample of data.seq_len={seq_len}: its longest file has "
        f"{longest} tokens, and {seq_len + 1} are needed. Use more text or a shorter data.seq_len."
    ]


def _index_problems(source: TokenSource) -> list[str]:
    indices, folder = [index_path(file.path).name for file in source.files], source.folder
    try:
        with ThreadPoolExecutor(HEADER_THREADS) as pool:
            missing = [name for name, size in zip(indices, pool.map(folder.size, indices), strict=True) if size is None]
    except OSError as error:
        return [f"{source.key}: {error.filename} cannot be read: {error.strerror}"]
    if not missing:
        return []
    more = f" and {len(missing) - 1:,} more like it are" if len(missing) > 1 else " is"
    return [
        f"{source.key}: {missing[0]}{more} missing, and data.packing=best_fit needs to know where documents end. Copy the "
        "index files here too, or tokenise again, or set data.packing=chunk."
    ]
