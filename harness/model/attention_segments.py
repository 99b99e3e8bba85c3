"""Who attends to whom, worked out on the host from the positions alone: a position of 0 starts a document.

A kernel for variable lengths takes it as segments: pairs of a run of queries and a run of keys, each given by offsets
into the flattened tokens. Where a segment has more keys than queries, the last query sees the last key.
"""

import numpy as np


def mask(position_ids: np.ndarray, chunks: list[int], chunk_count: int, window: int | None = None) -> np.ndarray:
    """The queries of `chunks` against all keys, true where they attend: bool [batch, 1, queries, seq].

    `position_ids` is int32 or int64 [batch, seq], of whole sequences, which are cut into `chunk_count` equal chunks. With a
    `window` each query sees that many keys at most, the last of them its own.
    """
    seq_len = position_ids.shape[1]
    index = np.arange(seq_len)
    starts = index - position_ids  # of each token's document, [batch, seq]
    queries = index.reshape(chunk_count, -1)[chunks].reshape(-1)
    same_document = starts[:, queries, None] == starts[:, None, :]
    seen = index <= queries[:, None]
    if window is not None:
        seen &= index > queries[:, None] - window
    return (same_document & seen)[:, None]


def segments(position_ids: np.ndarray, chunk: int, chunk_count: int) -> tuple[np.ndarray, np.ndarray]:
    """Offsets of the segments' queries and keys, int32 [segments + 1] each, for one chunk's queries.

    The queries are [batch, chunk], flattened; the keys [batch, end of the chunk], flattened. A document that began
    before the chunk brings its earlier keys along; keys of documents that ended before it form a segment without
    queries. Shapes of `position_ids` as in `mask`.
    """
    assert not position_ids[:, 0].any(), "a sequence begins with a document's first token"
    batch, seq_len = position_ids.shape
    length = seq_len // chunk_count
    start, end = chunk * length, (chunk + 1) * length
    positions = position_ids[:, start:end]
    begins = positions == 0
    begins[:, 0] = True  # what remains of a document that began earlier
    row, column = np.nonzero(begins)
    query_starts = row * length + column
    key_starts = row * end + start + column - positions[row, column]
    (behind,) = np.nonzero(positions[:, 0] < start)  # rows with documents that ended before the chunk
    query_starts = np.concatenate([query_starts, behind * length])
    key_starts = np.concatenate([key_starts, behind * end])
    order = np.lexsort((key_starts, query_starts))
    return (
        np.append(query_starts[order], batch * length).astype(np.int32),
        np.append(key_starts[order], batch * end).astype(np.int32),
    )


def padded(offsets: np.ndarray, multiple: int) -> np.ndarray:
    """`offsets` with empty segments at the end, so that its length is a multiple of `multiple` and hardly ever changes."""
    return np.pad(offsets, (0, -len(offsets) % multiple), mode="edge")
