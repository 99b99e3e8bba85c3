"""Lays documents into bins of a fixed number of tokens so that none that fits is split: best-fit, longest first.

Each document goes into the bin that it leaves the least room in. Documents of one length are placed together, so that the
work is done by numpy and grows with the number of different lengths rather than with that of documents.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np


@dataclass(frozen=True)
class Packed:
    """Some documents of one file as windows."""

    ends: np.ndarray
    """Pieces in the windows up to each one, it included: int64 [windows]."""
    begins: np.ndarray
    """First token of each piece in the file: int64 [pieces]."""
    lengths: np.ndarray
    """Its tokens: int64 [pieces]."""
    split: int
    """Documents that are longer than a window."""


def pack(ends: np.ndarray, begin: int, seq_len: int) -> Packed:
    """Windows of at most `seq_len` + 1 tokens for the documents that end before the tokens `ends`, int64 [documents], the
    first of which starts at `begin`.

    A document that is longer is cut at a stride of `seq_len`, as `Windows` cuts a file, and what remains is packed with the
    others. Windows come in the order of their first tokens. One that would predict nothing is left out.
    """
    begins = np.concatenate([[begin], ends[:-1]])
    lengths = ends - begins
    capacity = seq_len + 1
    full = np.where(lengths > capacity, (lengths - 1) // seq_len, 0)
    rest_begins, rest = begins + full * seq_len, lengths - full * seq_len
    kept = np.where(full > 0, rest > 1, rest > 0)  # the last token of a full window needs no second prediction
    rest_begins, rest = rest_begins[kept], rest[kept]
    bins = best_fit(rest, capacity)
    within = np.arange(full.sum()) - np.repeat(np.cumsum(full) - full, full)
    full_begins = np.repeat(begins, full) + within * seq_len
    first_bin = len(full_begins)
    return _in_order(
        np.concatenate([np.arange(first_bin), first_bin + bins]),
        np.concatenate([full_begins, rest_begins]),
        np.concatenate([np.full(first_bin, capacity), rest]),
        split=int(np.count_nonzero(full)),
    )


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The bin of each item of `lengths`, int64 [n] from 1 to `capacity`: int64 [n], bins are numbered from 0."""
    order = np.argsort(-lengths, kind="stable")
    bins = np.empty(len(lengths), dtype=np.int64)
    rooms = _Rooms(capacity)
    descending = lengths[order]
    bounds = np.append(np.flatnonzero(np.diff(descending, prepend=-1)), len(descending)).tolist()
    for start, end in pairwise(bounds):
        length = int(descending[start])
        while start < end:
            taken = rooms.take(length, end - start)
            bins[order[start : start + len(taken)]] = taken
            start += len(taken)
    return bins


class _Rooms:
    """Bins by the room that is left in them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._bins: list[list[np.ndarray]] = [[] for _ in range(capacity + 1)]
        self._some = 0
        """Bit r is set where bins with room for r more tokens exist."""
        self._count = 0

    def take(self, length: int, most: int) -> np.ndarray:
        """Place an item of `length` tokens in each of up to `most` bins, those with the least room that is enough."""
        fitting = self._some >> length
        if not fitting:
            new = -(-most // (self._capacity // length))
            self._put(self._capacity, np.arange(self._count, self._count + new))
            self._count += new
            fitting = self._some >> length
        room = length + (fitting & -fitting).bit_length() - 1
        found = self._bins[room].pop()
        if len(found) > most:
            self._bins[room].append(found[most:])
            found = found[:most]
        if not self._bins[room]:
            self._some &= ~(1 << room)
        if room > length:  # full bins need not be found again
            self._put(room - length, found)
        return found

    def _put(self, room: int, bins: np.ndarray) -> None:
        self._bins[room].append(bins)
        self._some |= 1 << room


def _in_order(windows: np.ndarray, begins: np.ndarray, lengths: np.ndarray, *, split: int) -> Packed:
    """Sort pieces by the first token of their window, then by their own; `windows` is int64 [pieces], numbered from 0."""
    order = np.argsort(begins, kind="stable")
    windows, begins, lengths = windows[order], begins[order], lengths[order]
    count = int(windows.max(initial=-1)) + 1
    first_piece = np.full(count, len(windows))
    np.minimum.at(first_piece, windows, np.arange(len(windows)))
    tokens = np.bincount(windows, weights=lengths, minlength=count).astype(np.int64)
    order = np.lexsort((begins, first_piece[windows]))
    order = order[tokens[windows[order]] > 1]
    changes = np.flatnonzero(np.diff(windows[order], append=-1))
    return Packed(changes + 1, begins[order], lengths[order], split)
