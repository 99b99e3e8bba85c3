"""What every program reads: the shape of a batch, and token files of random ids."""

from pathlib import Path

import numpy as np

SEQ_LEN = 4096
BATCH = 8
"""Sequences."""
VOCAB = 128_256
END = 0
"""Token that ends a document."""
MEAN_DOCUMENT = 1000
"""Tokens."""


def write_shards(folder: Path, shards: int, tokens: int) -> list[Path]:
    """Token files of `tokens` uint32 ids in all, the same ones each time; those that are there already are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05d}.ds" for number in range(shards)]
    each = tokens // shards
    for number, path in enumerate(paths):
        if path.exists() and path.stat().st_size == 4 * each:
            continue
        random = np.random.default_rng(number)
        ids = random.integers(1, VOCAB, each, dtype=np.uint32)
        ids[random.integers(0, each, each // MEAN_DOCUMENT)] = END
        path.write_bytes(ids.tobytes())
    return paths


def samples(shard: Path) -> np.ndarray:
    """The shard as int32 [samples, SEQ_LEN + 1], for programs that store samples one by one."""
    ids = np.fromfile(shard, "<u4").astype(np.int32)
    count = (len(ids) - 1) // SEQ_LEN
    return np.lib.stride_tricks.sliding_window_view(ids, SEQ_LEN + 1)[::SEQ_LEN][:count]
