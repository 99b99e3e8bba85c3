"""Whether the order reaches every window of a source once an epoch."""

from dataclasses import dataclass

import numpy as np

from harness.data.order import SampleOrder

WHOLE_WINDOWS = 1 << 22
"""Sources up to this size are gone through whole, larger ones by a sample."""
CHUNK = 1 << 18


@dataclass(frozen=True)
class Coverage:
    """What was found for one source."""

    windows: int
    looked_at: int
    """Places of an epoch that were followed to their windows."""
    problem: str = ""

    @property
    def whole(self) -> bool:
        """Whether every place was, so that nothing is left to chance."""
        return self.looked_at == self.windows


def coverage(order: SampleOrder, source: int, epochs: tuple[int, ...] = (0, 1), limit: int = WHOLE_WINDOWS) -> Coverage:
    """Follow the places of these epochs of a source to their windows: all of them, or `limit` drawn at random.

    As many different windows as places, none outside the source: that is a bijection where all places were followed, and
    for a sample it would show a shuffle that repeats a millionth of its windows.
    """
    size = order.windows[source].count
    for epoch in epochs:
        places = np.arange(size) if size <= limit else _sample(size, limit, epoch)
        found = np.sort(np.concatenate([
            order.windows_of(source, epoch * size + places[begin : begin + CHUNK]) for begin in range(0, len(places), CHUNK)
        ]))  # fmt: skip
        outside = np.count_nonzero((found < 0) | (found >= size))
        repeated = np.count_nonzero(found[1:] == found[:-1])
        if outside or repeated:
            return Coverage(
                size,
                len(places),
                f"{order.sources[source].key}: epoch {epoch} reads {repeated:,} windows twice and {outside:,} that are not there, "
                f"of {len(places):,} looked at: a fault of the order; report it",
            )
    return Coverage(size, min(size, limit))


def _sample(size: int, count: int, seed: int) -> np.ndarray:
    """Different places, int64 [about count]: neighbours and others."""
    draw = np.random.default_rng(seed)
    return np.unique(np.concatenate([draw.integers(0, size, count // 2), np.arange(count // 2)]))
