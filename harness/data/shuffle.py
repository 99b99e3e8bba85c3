"""How the windows of a source are shuffled in each epoch: all over the source, or within groups of blocks.

Both are computed, not stored: keyed bijections on the windows, another one for each source and epoch. A source's windows are
drawn in that order, so a run reads from one group of blocks of a source at a time.
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
    sizes = sizes[sources]
    epochs = counts // sizes
    counts = counts - epochs * sizes
    pairs, which = np.unique(epochs * len(names) + sources, return_inverse=True)
    places = [(names[pair % len(names)], pair // len(names)) for pair in pairs.tolist()]

    def keys(kind: str) -> np.ndarray:
        """Of the shuffle that each element belongs to."""
        found = np.array([key(seed, kind, *place) for place in places], dtype=np.uint64).reshape(-1, ROUNDS)
        return found[0] if len(found) == 1 else found[which]

    if blocks is None:
        return permute(counts, sizes, keys("windows"))
    # first the place in the layout of blocks, by the group that it belongs to; then the block that is laid out there
    length = blocks.block * blocks.group
    groups = counts // length
    most = int(groups.max(initial=0)) + 1
    of_groups, which_group = np.unique(which * most + groups, return_inverse=True)
    numbers = of_groups.tolist()
    group_keys = np.array([key(seed, "group", *places[n // most], n % most) for n in numbers], dtype=np.uint64)
    begins = groups * length
    counts = begins + permute(
        counts - begins, np.minimum(length, sizes - begins), group_keys.reshape(-1, ROUNDS)[which_group]
    )
    return _laid_out(counts, sizes, blocks.block, keys("blocks"), keys("short block")[..., 0])


def _laid_out(places: np.ndarray, sizes: np.ndarray, block: int, keys: np.ndarray, gap_keys: np.ndarray) -> np.ndarray:
    """The window that stands in each place once the blocks are shuffled. The short block stands anywhere between the others."""
    whole, rest = np.divmod(sizes, block)
    gaps = (gap_keys % (whole + 1).astype(np.uint64)).astype(np.int64) * block
    behind = places >= gaps + rest
    slots, offsets = np.divmod(np.where(behind, places - rest, places), block)
    windows = whole * block + places - gaps
    others = behind | (places < gaps)
    keys = keys if keys.ndim == 1 else keys[others]
    windows[others] = permute(slots[others], whole[others], keys) * block + offsets[others]
    return windows
