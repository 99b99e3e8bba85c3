"""Documents that a tokenizer's truncation has cut: token files that other tools made may be full of them."""

import json
from pathlib import Path

import numpy as np

from harness.data.token_files import TokenSource, index_path

FRAME = 2
"""Tokens around a document that a tool may have added after the cut, at most."""


def truncation_warning(source: TokenSource, tokenizer: Path | None) -> str | None:
    """What to say of documents that end where `tokenizer` truncates; None: there are none.

    Looks at the lengths in the first index of `source`: cut are those of the longest length, if that is where the
    tokenizer truncates. Raises OSError.
    """
    limit = _limit(tokenizer) if tokenizer is not None else None
    index = next((index for file in source.files if (index := index_path(file.path)).exists()), None)
    if limit is None or index is None:
        return None
    lengths = np.diff(np.fromfile(index, "<u8").astype(np.int64), prepend=0)
    longest = int(lengths.max(initial=0))
    if not limit <= longest <= limit + FRAME:
        return None
    cut = int(np.count_nonzero(lengths >= limit))
    return (
        f"{source.key}: {cut:,} of {len(lengths):,} documents of {index.name.removesuffix('.index')} end after {longest:,} tokens, "
        f"and none is longer: {tokenizer} truncates to {limit:,}. They are cut. Prepare them again with python -m harness.data "
        "prepare, which does not truncate"
    )


def _limit(tokenizer: Path) -> int | None:
    """Where a tokenizer.json truncates."""
    try:
        truncation = json.loads(tokenizer.read_text(encoding="utf-8")).get("truncation") or {}
    except (ValueError, AttributeError):
        return None
    return truncation.get("max_length")
