"""How the windows of a source are shuffled in each epoch: all over the source, or within groups of blocks.

Both are computed, not stored: keyed bijections on the windows, another one for each source and epoch.
"""

from dataclasses import dataclass

import numpy as np

from harness.config.schema import DataConfig, Shuffle
from harness.data.errors import DataError
from harness.data.mixture import key
from harness.data.permutation import ROUNDS, permute


@dataclass(frozen=True)
class Blocks:
    """Blocks of neighbouring windows are shuffled; then the windows within each group of blocks."""

    block: int
    """Windows in a block; the last block of a source may be shorter."""
    group: int
    """Blocks in a group."""

    def __post_init__(self) -> None:
        for name, value in (("data.shuffle_block", self.block), ("data.shuffle_group", self.group)):
            if value < 1:
                raise DataError(f"{name}={value}: must be at least 1")


def shuffle_of(data: DataConfig) -> Blocks | None:
    """What `data.shuffle` asks for; None: the full shuffle. Raises DataError."""
    return Blocks(data.shuffle_block, data.shuffle_group) if data.shuffle is Shuffle.blocks else None


def shuffled(
    seed: int, names: list[str], sizes: np.ndarray, sources: np.ndarray, counts: np.ndarray, blocks: Blocks | None
) -> np.ndarray:
    """The window that each count of a source reads: int64 [n].

    `sizes`: windows of each source, int64 [sources]; `sources`, `counts`: int64 [n]. `counts` go on over the epochs.
    """
    windows = np.empty_like(counts)
    for source in np.unique(sources):
        members = np.flatnonzero(sources == source)
        windows[members] = _of_source(counts[members], int(sizes[source]), (seed, names[source]), blocks)
    return windows


def _of_source(counts: np.ndarray, size: int, place: tuple[int, str], blocks: Blocks | None) -> np.ndarray:
    seed, name = place
    epochs, which = np.unique(counts // size, return_inverse=True)
    counts = counts - epochs[which] * size

    def keys(*kind: str) -> np.ndarray:
        found = [key(seed, *(kind or ("windows",)), name, int(epoch)) for epoch in epochs]
        return found[0] if len(found) == 1 else np.array(found)[which]

    if blocks is None:
        return permute(counts, size, keys())
    # places first, by the group that each lies in; then the blocks that are laid out there
    length = blocks.block * blocks.group
    groups = counts // length * length
    pairs, of_pair = np.unique(np.stack([epochs[which], groups]), axis=1, return_inverse=True)
    group_keys = np.array([key(seed, "group", name, int(epoch), int(group)) for epoch, group in pairs.T])
    places = groups + permute(
        counts - groups, np.minimum(length, size - groups), group_keys.reshape(-1, ROUNDS)[of_pair.reshape(-1)]
    )
    return _laid_out(places, size, blocks.block, keys("blocks"), keys("short block")[..., 0])


def _laid_out(places: np.ndarray, size: int, block: int, keys: np.ndarray, gap_keys: np.ndarray) -> np.ndarray:
    """The window that stands in each place once the blocks are shuffled. The short block stands anywhere between the others."""
    whole, rest = divmod(size, block)
    gaps = (gap_keys % np.uint64(whole + 1)).astype(np.int64) * block
    behind = places >= gaps + rest
    slots, offsets = np.divmod(np.where(behind, places - rest, places), block)
    windows = whole * block + places - gaps
    others = behind | (places < gaps)
    if others.any():
        keys = keys if keys.ndim == 1 else keys[others]
        windows[others] = permute(slots[others], whole, keys) * block + offsets[others]
    return windows
