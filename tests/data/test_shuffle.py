"""The two shuffles of a source's windows: bijections, and what blocks keep together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import DataConfig, Shuffle
from harness.data.errors import DataError
from harness.data.shuffle import Blocks, shuffle_of, shuffled


def windows_of(counts: np.ndarray, size: int, blocks: Blocks | None, name: str = "web", seed: int = 3) -> np.ndarray:
    """The windows of one source."""
    return shuffled(seed, [name], np.array([size]), np.zeros_like(counts), counts, blocks)


@given(size=st.integers(1, 3000), block=st.integers(1, 64), group=st.integers(1, 20), first=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_blocks_reach_every_window_once_per_epoch(size: int, block: int, group: int, first: int) -> None:
    counts = np.arange(first * size, (first + 3) * size)
    epochs = windows_of(counts, size, Blocks(block, group)).reshape(3, size)
    assert (np.sort(epochs) == np.arange(size)).all()


def test_blocks_keep_reads_together() -> None:
    size, block, group = 64 * 100 + 17, 64, 10
    epoch, again = windows_of(np.arange(2 * size), size, Blocks(block, group)).reshape(2, size)
    groups = [epoch[begin : begin + block * group] for begin in range(0, size, block * group)]
    # the short block moves those behind it, so that the last of a group may reach into the next one
    assert max(len(np.unique(found // block)) for found in groups) <= group + 1
    assert (np.diff(groups[0]) == 1).sum() < 10, "inside a group there is no order left"
    assert set(np.unique(again[: block * group] // block)) != set(np.unique(groups[0] // block)), "anew in each epoch"


def test_any_subset_equals_the_whole() -> None:
    """Several sources and epochs in one call, in any order, with and without blocks."""
    names, sizes = ["web", "code"], np.array([300, 7])
    draw = np.random.default_rng(0)
    sources, counts = draw.integers(0, 2, 500), draw.integers(0, 2000, 500)
    for blocks in (None, Blocks(8, 4)):
        found = shuffled(1, names, sizes, sources, counts, blocks)
        one_by_one = [shuffled(1, names, sizes, sources[i : i + 1], counts[i : i + 1], blocks)[0] for i in range(500)]
        assert found.tolist() == one_by_one
        assert shuffled(1, names, sizes, sources[:0], counts[:0], blocks).tolist() == []


def test_sources_and_seeds_have_shuffles_of_their_own() -> None:
    counts = np.arange(1000)
    for blocks in (None, Blocks(16, 8)):
        orders = [windows_of(counts, 1000, blocks), windows_of(counts, 1000, blocks, name="code")]
        orders += [windows_of(counts, 1000, blocks, seed=4), windows_of(counts + 1000, 1000, blocks)]
        assert all((orders[0] == other).mean() < 0.02 for other in orders[1:])


def test_what_the_config_asks_for() -> None:
    assert shuffle_of(DataConfig()) is None
    assert shuffle_of(DataConfig(shuffle=Shuffle.blocks, shuffle_block=4, shuffle_group=8)) == Blocks(4, 8)
    with pytest.raises(DataError, match=r"data\.shuffle_block=0: must be at least 1"):
        shuffle_of(DataConfig(shuffle=Shuffle.blocks, shuffle_block=0))
