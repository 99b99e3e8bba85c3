import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.best_fit import best_fit, pack


def one_at_a_time(lengths: list[int], capacity: int) -> int:
    """How many bins best-fit takes, longest first, in the plainest way."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - length)
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(lengths=st.lists(st.integers(1, 40), max_size=300))
@settings(max_examples=100, deadline=None)
def test_bins_are_those_of_plain_best_fit(lengths: list[int]) -> None:
    bins = best_fit(np.array(lengths, dtype=np.int64), 40)
    used = np.bincount(bins, weights=lengths) if lengths else np.zeros(0)
    assert (used <= 40).all() and (used > 0).all(), "no bin is too full, none is without an item"
    assert abs(len(used) - one_at_a_time(lengths, 40)) <= 1  # items of one length are dealt out side by side


@given(lengths=st.lists(st.integers(0, 60), min_size=1, max_size=200), begin=st.integers(0, 1000))
@settings(max_examples=100, deadline=None)
def test_each_document_is_whole_or_cut_as_chunks_are(lengths: list[int], begin: int) -> None:
    seq_len = 16
    ends = begin + np.cumsum(lengths)
    packed = pack(ends, begin, seq_len)
    assert packed.split == sum(length > seq_len + 1 for length in lengths)
    pieces = sorted(zip(packed.begins.tolist(), packed.lengths.tolist(), strict=True))
    expected = []
    for end, length in zip(ends.tolist(), lengths, strict=True):
        first = end - length
        while end - first > seq_len + 1:
            expected.append((first, seq_len + 1))
            first += seq_len
        if end - first > (first > end - length):  # of what was cut, one token that was predicted already needs no room
            expected.append((first, end - first))
    total = np.diff(packed.ends, prepend=0)
    assert (total > 0).all()
    assert (np.add.reduceat(packed.lengths, packed.ends - total) <= seq_len + 1).all() if len(total) else not pieces
    missing = set(expected) - set(pieces)
    assert set(pieces) <= set(expected) and len(pieces) == len(set(pieces))
    assert all(length == 1 for _, length in missing) and len(missing) <= 1, "only what predicts nothing may be left out"


def test_windows_stand_in_the_order_of_the_file() -> None:
    ends = np.cumsum(np.random.default_rng(0).integers(1, 50, 1000))
    packed = pack(ends, 0, 64)
    firsts = packed.begins[np.concatenate([[0], packed.ends[:-1]])]
    assert (np.diff(firsts) > 0).all()


@pytest.mark.parametrize(("documents", "most"), [(1 << 14, 0.001), (1 << 16, 0.0002)])
def test_wastes_little_on_documents_as_they_are_on_the_web(documents: int, most: float) -> None:
    lengths = np.random.default_rng(0).lognormal(6.3, 1.1, documents).astype(np.int64) + 1
    packed = pack(np.cumsum(lengths), 0, 4096)
    assert 1 - packed.lengths.sum() / (len(packed.ends) * 4097) < most
