import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data.errors import DataError
from harness.data.skips import NO_SKIPS, Skips, skip_problems

END = 60
RANGES = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)).map(lambda r: [r[0], r[0] + r[1]]), max_size=6)


def batches(ranges: list[list[int]]) -> list[int]:
    """The batches of steps 1, 2, ... the slow way."""
    left_out = {batch for first, last in ranges for batch in range(first, last + 1)}
    return [batch for batch in range(1, END) if batch not in left_out]


@given(RANGES)
def test_equals_the_list_of_batches(ranges: list[list[int]]) -> None:
    skips, expected = Skips(ranges), batches(ranges)
    assert [skips.batch_of_step(step) for step in range(1, len(expected) + 1)] == expected
    for batch in range(1, END):
        assert skips.steps_before(batch) == sum(other < batch for other in expected)
    assert skips.history(0) == []


@given(RANGES, RANGES, st.integers(0, 12))
def test_histories_are_equal_exactly_where_the_batches_are(one: list, other: list, step: int) -> None:
    trained = batches(one)[:step]
    history = Skips(one).history(step)
    assert Skips(other).agrees(step, history) == (batches(other)[:step] == trained)
    passed_over = {batch for first, last in history for batch in range(first, last + 1)}
    assert passed_over == set(range(1, max(trained, default=0))) - set(trained)


@given(RANGES, RANGES)
def test_common_steps_end_where_the_batches_part(one: list, other: list) -> None:
    common = Skips(one).common_steps(other)
    ours, theirs = batches(one), batches(other)
    if common is None:
        assert ours == theirs
    else:
        assert ours[:common] == theirs[:common] and ours[common] != theirs[common]


def test_ranges_are_put_in_order_and_together() -> None:
    assert Skips([[9, 12], [1, 3], [4, 5], [2, 3]]).ranges == ((1, 5), (9, 12))
    assert Skips([[1, 2], [3, 3]]) == Skips([[1, 3]]) != NO_SKIPS


def test_far_along_it_costs_no_more() -> None:
    skips = Skips([[10**9, 2 * 10**9], [10**12, 10**12]])
    assert skips.batch_of_step(10**15) == 10**15 + 10**9 + 2
    assert skips.history(10**9) == [(10**9, 2 * 10**9)]


@pytest.mark.parametrize("entry", [[], [3], [1, 2, 3], [0, 4], [5, 4], [-2, -1]])
def test_what_is_no_range_is_named(entry: list[int]) -> None:
    (problem,) = skip_problems([[1, 2], entry])
    assert problem.startswith(f"train.skip={entry}: give [from, to]")
    with pytest.raises(DataError, match=r"train\.skip"):
        Skips([entry])
