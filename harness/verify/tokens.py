"""Random token files with several documents in every sequence."""

from pathlib import Path

import numpy as np

from harness.config.schema import RootConfig
from harness.verify.shrink import END

_DOCUMENT = 12
"""Mean length of a document, in tokens."""


def write_tokens(folder: Path, small: RootConfig) -> None:
    """Make `folder`, with one sample for each that the run trains on. The same numbers each time."""
    draw = np.random.default_rng(0)
    count = small.train.steps * small.train.global_batch_size * small.data.seq_len + 1
    tokens = draw.integers(END + 1, small.model.vocab_size, count)
    tokens[draw.random(count) < 1 / _DOCUMENT] = END
    folder.mkdir(parents=True)
    (folder / "000.ds").write_bytes(tokens.astype("<u2").tobytes())
    (folder / "000.ds.metadata").write_text(f"Unknown Tokenizer|2\n{count}\n{count} T")
