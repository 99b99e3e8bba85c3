"""A source cut into samples, and where in its files the tokens of each lie."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from harness.data.errors import DataError
from harness.data.token_files import TokenSource, inspect_source


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


def open_sources(paths: Iterable[tuple[str, str | Path]], seq_len: int, group: str = "sources") -> list[TokenSource]:
    """Open all (name, path) pairs of `data.GROUP`, in order. Raises DataError that lists everything wrong with any of them."""
    sources, problems = [], []
    for name, path in paths:
        source, found = inspect_source(name, path, group)
        problems += found or window_problems(source, seq_len)
        sources.append(source)
    if problems:
        raise DataError("\n".join(problems))
    return [source for source in sources if source is not None]


def window_problems(source: TokenSource | None, seq_len: int) -> list[str]:
    """Complains of a source that is too small for a single sample."""
    if source is None or Windows(source, seq_len).count:
        return []
    longest = max(file.tokens for file in source.files)
    return [
        f"{source.key} holds no sample of data.seq_len={seq_len}: its longest file has "
        f"{longest} tokens, and {seq_len + 1} are needed. Use more text or a shorter data.seq_len."
    ]
