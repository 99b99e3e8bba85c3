"""The first tokens of some documents of a source: they tell whether its text was tokenised with a token that begins documents."""

import numpy as np

from harness.data.token_files import DTYPES, TokenSource, index_path

SAMPLED_DOCUMENTS = 64
"""Looked at per source."""


def document_starts(source: TokenSource, count: int) -> list[tuple[int, ...]]:
    """The first `count` tokens of the first documents of the first file that has an index; empty if none has.

    Documents that are shorter are left out. Raises OSError."""
    folder, width = source.folder, source.token_size
    for file in source.files:
        index = index_path(file.path).name
        if folder.size(index) is None:
            continue
        ends = np.frombuffer(folder.read(index, 0, 8 * SAMPLED_DOCUMENTS), "<u8").tolist()
        found = []
        for start, end in zip([0, *ends], ends, strict=False):
            if end - start >= count:
                read = folder.read(file.path.name, start * width, count * width)
                found.append(tuple(np.frombuffer(read, DTYPES[width]).tolist()))
        return found
    return []
