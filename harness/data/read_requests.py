"""From the windows of a batch to the reads that fetch them: pieces that lie side by side in a file are read at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from harness.data.windows import Windows

MOST_BYTES = 1 << 20
"""A read gathers neighbours up to this size."""


@dataclass(slots=True)
class Part:
    """Where some of the tokens of a read belong."""

    row: int
    column: int
    tokens: int
    at: int
    """Tokens of the read before the first one."""


@dataclass(slots=True, eq=False)
class Request:
    """One stretch of one file that a batch needs, and how far it is with it."""

    source: int
    file: int
    offset: int
    """Bytes before the first one."""
    tokens: int
    parts: list[Part]
    step: int
    target: np.ndarray
    """Takes the tokens: int32 [samples, seq_len + 1]."""
    begun: float = 0.0
    """time.monotonic() of the first attempt; 0: none yet."""
    done: bool = False
    """Its tokens have come."""
    answers: Iterator[int] = field(default_factory=count)
    """Gives 0 to one alone of several attempts that come back; a count is atomic, and cheaper than a lock."""
    turn: int = 0
    """Attempts so far: says which copy is asked next."""
    live: int = 0
    """Attempts that wait in the queue or are still expected to answer."""
    failures: dict[str, str] = field(default_factory=dict)
    """Path -> what was wrong with the last attempt there."""
    damaged: dict[int, int] = field(default_factory=dict)
    """Number of the copy -> how often it held something else than it should."""

    def deliver(self, tokens: np.ndarray) -> None:
        """Put the tokens that were read, [tokens] of any width, where they belong."""
        for part in self.parts:
            self.target[part.row, part.column : part.column + part.tokens] = tokens[part.at : part.at + part.tokens]


def plan_reads(
    windows: Sequence[Windows], sources: np.ndarray, numbers: np.ndarray, step: int, target: np.ndarray
) -> list[Request]:
    """The reads that fill `target` [samples, seq_len + 1] with windows `numbers` [samples] of `sources` [samples]."""
    pieces = []
    for row, (source, number) in enumerate(zip(sources.tolist(), numbers.tolist(), strict=True)):
        column = 0
        for piece in windows[source].pieces(number):
            pieces.append((source, piece.file, piece.offset, piece.tokens, row, column))
            column += piece.tokens
    pieces.sort()
    requests: list[Request] = []
    request, end, width = None, 0, 0
    for source, file, offset, tokens, row, column in pieces:
        if request is not None and (request.source, request.file) == (source, file) and offset <= end:
            last = max(end, offset + tokens * width)
            if last - request.offset <= MOST_BYTES:
                request.parts.append(Part(row, column, tokens, (offset - request.offset) // width))
                request.tokens, end = (last - request.offset) // width, last
                continue
        width = windows[source].source.token_size
        end = offset + tokens * width
        request = Request(source, file, offset, tokens, [Part(row, column, tokens, 0)], step, target)
        requests.append(request)
    return requests
