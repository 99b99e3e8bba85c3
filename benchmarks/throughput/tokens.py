"""Token files of random tokens: what is read does not matter for speed, that it is read as in a real run does."""

from pathlib import Path

import numpy as np

END_OF_DOCUMENT = 0
MEAN_DOCUMENT = 1000
"""Tokens; lengths are exponentially distributed, about as in web text."""
TOKENS = 8_000_000


def write_random_tokens(folder: Path, vocab_size: int, tokens: int = TOKENS, seed: int = 0) -> Path:
    """One datatrove token file of uint32 ids uniform over the vocabulary, documents ending in END_OF_DOCUMENT."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, vocab_size, size=tokens, dtype=np.uint32)
    lengths = 1 + rng.exponential(MEAN_DOCUMENT, size=2 * tokens // MEAN_DOCUMENT + 1).astype(np.uint64)
    ends = np.cumsum(lengths, dtype=np.uint64)
    ends = np.append(ends[ends < tokens], np.uint64(tokens))
    ids[ends.astype(np.int64) - 1] = END_OF_DOCUMENT
    folder.mkdir(parents=True, exist_ok=True)
    ids.astype("<u4").tofile(folder / "random.ds")
    ends.astype("<u8").tofile(folder / "random.ds.index")
    return folder


def overrides(tokens: Path) -> list[str]:
    """For `harness.launch` or `compose`: train on nothing but the tokens of this folder."""
    return [
        f"+data.sources.random.path={tokens}",
        "data.stages=[{name: random, weights: {random: 1.0}}]",
        f"data.eos_token_id={END_OF_DOCUMENT}",
    ]
