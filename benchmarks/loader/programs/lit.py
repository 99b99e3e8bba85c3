"""litdata: its token chunks, its TokensLoader, its StreamingDataLoader."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader.shape import BATCH, SEQ_LEN

PACKAGES = ("litdata", "torch", "numpy")
CHUNK_SAMPLES = 4096
"""Samples of a chunk: the 64 MB that its own default asks for."""


def read_shard(path: str) -> Iterator[Any]:
    """The tokens of one file."""
    import torch

    yield torch.from_numpy(np.fromfile(path, "<u4").astype(np.int32))


def prepare(shards: Sequence[Path], folder: Path) -> None:
    """Chunks of tokens."""
    from litdata import TokensLoader, optimize

    optimize(
        fn=read_shard,
        inputs=[str(shard) for shard in shards],
        output_dir=str(folder),
        chunk_size=CHUNK_SAMPLES * (SEQ_LEN + 1),
        item_loader=TokensLoader(),
        num_workers=1,
    )


def batches(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch."""
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader

    data = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=SEQ_LEN + 1), shuffle=True, drop_last=True)
    loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers, drop_last=True)
    while True:
        for tokens in loader:
            whole = tokens.long()
            yield whole[:, :-1].contiguous(), whole[:, 1:].contiguous()
