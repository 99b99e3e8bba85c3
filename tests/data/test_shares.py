"""The layout of a block against what it promises: each draw in its own stretch, or each share within one sample of exact."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.permutation import derive_key
from harness.data.shares import LARGEST_TOTAL, apportion, mixed, schedule

some_weights = st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any)


def stretches_kept(sources: np.ndarray, weights: list[int]) -> bool:
    """By the definition, a draw at a time: draw k of a source with the share w lies in [floor(k / w), ceil((k + 1) / w))."""
    drawn = [0] * len(weights)
    for place, source in enumerate(sources.tolist()):
        share = Fraction(weights[source], sum(weights))
        if not drawn[source] / share <= place + 1 - Fraction(1, 10**30) or not place < -(
            -(drawn[source] + 1) / share // 1
        ):
            return False
        if place < drawn[source] / share // 1:
            return False
        drawn[source] += 1
    return True


def counts_kept(sources: np.ndarray, weights: list[int]) -> bool:
    """No prefix holds a whole sample more or fewer of any source than its share."""
    ends = np.arange(1, len(sources) + 1)
    return all(
        (np.abs(np.cumsum(sources == s) * sum(weights) - ends * weight) < sum(weights)).all()
        for s, weight in enumerate(weights)
    )


@given(weights=some_weights, periods=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_a_block_of_whole_periods_keeps_every_share_at_every_place(weights: list[int], periods: int, seed: int) -> None:
    until = [periods * weight for weight in weights]
    draws = schedule(weights, 0, [0] * len(weights), until)
    for sources in (draws.sources, mixed(draws, derive_key(seed))):
        assert np.bincount(sources, minlength=len(weights)).tolist() == until
        assert stretches_kept(sources, weights) and counts_kept(sources, weights)


@given(
    weights=st.lists(st.integers(1, 10**6), min_size=2, max_size=60),
    block=st.integers(1, 10**6),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_a_block_between_rounded_ends_is_complete_and_hardly_off(weights: list[int], block: int, seed: int) -> None:
    size = 1000
    taken, until = apportion(weights, block * size), apportion(weights, (block + 1) * size)
    assert sum(taken) == block * size
    assert all(end - begin >= 0 for begin, end in zip(taken, until, strict=True))
    sources = mixed(schedule(weights, block * size, taken, until), derive_key(seed))
    assert np.bincount(sources, minlength=len(weights)).tolist() == (np.array(until) - taken).tolist()
    ends = block * size + np.arange(1, size + 1)
    for s, weight in enumerate(weights):
        off = taken[s] + np.cumsum(sources == s) - ends * (weight / sum(weights))
        assert np.abs(off).max() < 2


@given(weights=some_weights, draws=st.integers(0, 10**12))
@settings(max_examples=200, deadline=None)
def test_apportioned_draws_never_go_back(weights: list[int], draws: int) -> None:
    now, then = apportion(weights, draws), apportion(weights, draws + 1)
    assert sorted(after - before for before, after in zip(now, then, strict=True)) == [0] * (len(weights) - 1) + [1]
    assert all(abs(count - Fraction(draws * w, sum(weights))) < 2 for count, w in zip(now, weights, strict=True))


def test_the_largest_weights_and_furthest_blocks_do_not_overflow() -> None:
    weights = [LARGEST_TOTAL - 3, 1, 2]
    begin = 2**50
    taken, until = apportion(weights, begin), apportion(weights, begin + (1 << 14))
    sources = mixed(schedule(weights, begin, taken, until), derive_key(1))
    assert np.bincount(sources, minlength=3).tolist() == (np.array(until) - taken).tolist()


def test_a_thousand_to_one() -> None:
    """The one may be anywhere in its thousand, and is: a fixed place would always be the same rank's."""
    weights, period = [999, 1], 1000
    draws = schedule(weights, 0, [0, 0], [4 * 999, 4])
    places = [np.flatnonzero(mixed(draws, derive_key(seed))) % period for seed in range(60)]
    found = np.concatenate(places)
    assert len(np.unique(found // 100)) == 10 and len(np.unique(found)) > 150


@pytest.mark.parametrize("seed", range(3))
def test_the_same_key_gives_the_same_block(seed: int) -> None:
    draws = schedule([3, 2], 0, [0, 0], [30, 20])
    before = draws.sources.copy()
    assert mixed(draws, derive_key(seed)).tolist() == mixed(draws, derive_key(seed)).tolist()
    assert mixed(draws, derive_key(seed)).tolist() != mixed(draws, derive_key("other")).tolist()
    assert (draws.sources == before).all()  # they are kept and used again
