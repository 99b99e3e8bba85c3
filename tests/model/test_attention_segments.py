from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.model.attention_segments import mask, padded, segments
from tests.model.attending import bottom_right_causal, positions, true_mask


@st.composite
def packed_rows(draw: st.DrawFn) -> tuple[list[list[int]], int]:
    """Rows of documents by their lengths, all rows equally long, and into how many chunks a sequence is cut."""
    chunk_count = draw(st.sampled_from([1, 2, 4, 8]))
    tokens = chunk_count * draw(st.integers(1, 5))
    rows = []
    for _ in range(draw(st.integers(1, 3))):
        cuts = draw(st.sets(st.integers(1, tokens - 1))) if tokens > 1 else set()
        rows.append(np.diff([0, *sorted(cuts), tokens]).tolist())
    return rows, chunk_count


@settings(deadline=None)
@given(packed_rows())
def test_segments_are_the_true_mask(case: tuple[list[list[int]], int]) -> None:
    rows, chunk_count = case
    position_ids, whole = positions(rows), true_mask(rows)
    length = position_ids.shape[1] // chunk_count
    for chunk in range(chunk_count):
        start, end = chunk * length, (chunk + 1) * length
        cu_q, cu_k = segments(position_ids, chunk, chunk_count)
        assert cu_q.dtype == cu_k.dtype == np.int32
        assert (cu_q[0], cu_k[0], cu_q[-1], cu_k[-1]) == (0, 0, len(rows) * length, len(rows) * end)
        found = np.zeros((cu_q[-1], cu_k[-1]), bool)
        for (q0, q1), (k0, k1) in zip(pairwise(cu_q), pairwise(cu_k), strict=True):
            assert q1 >= q0 and k1 > k0
            found[q0:q1, k0:k1] = bottom_right_causal(q1 - q0, k1 - k0)
        found = found.reshape(len(rows), length, len(rows), end)
        for row in range(len(rows)):
            np.testing.assert_array_equal(found[row, :, row], whole[row, start:end, :end])
            found[row, :, row] = False
        assert not found.any(), "rows attend to each other"


@settings(deadline=None)
@given(packed_rows(), st.data())
def test_mask_is_the_true_one(case: tuple[list[list[int]], int], data: st.DataObject) -> None:
    rows, chunk_count = case
    chunks = data.draw(st.lists(st.integers(0, chunk_count - 1), min_size=1, unique=True))
    found = mask(positions(rows), chunks, chunk_count)
    queries = np.arange(sum(rows[0])).reshape(chunk_count, -1)[chunks].reshape(-1)
    np.testing.assert_array_equal(found, true_mask(rows)[:, None, queries])


def test_without_chunks_segments_are_documents() -> None:
    cu_q, cu_k = segments(positions([[5, 1, 10, 16], [32]]), 0, 1)
    assert cu_q.tolist() == cu_k.tolist() == [0, 5, 6, 16, 32, 64]


def test_padding_adds_empty_segments() -> None:
    assert padded(np.array([0, 3, 7], np.int32), 4).tolist() == [0, 3, 7, 7]
    assert padded(np.array([0, 3, 5, 7], np.int32), 4).tolist() == [0, 3, 5, 7]
    assert padded(np.array([0, 3, 7], np.int32), 1).tolist() == [0, 3, 7]
