"""`datasets` streaming Parquet files, a sample a row, with its shuffle buffer, into torch's DataLoader."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loader.shape import BATCH, samples

PACKAGES = ("datasets", "pyarrow", "torch")
SHUFFLE_BUFFER = 1000
"""Samples; the library's default."""


def prepare(shards: Sequence[Path], folder: Path) -> None:
    """One Parquet file per shard, not compressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for shard in shards:
        rows = samples(shard)
        column = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
        pq.write_table(pa.table({"tokens": column}), folder / f"{shard.stem}.parquet", compression="none")


def batches(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch. Shuffled it counts as one shard, so a second worker would have nothing to do."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader

    files = [str(path) for path in sorted(folder.glob("*.parquet"))]
    data = load_dataset("parquet", data_files=files, split="train", streaming=True)
    data = data.shuffle(seed=1, buffer_size=SHUFFLE_BUFFER).with_format("torch")
    loader = DataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=_collate, drop_last=True)
    while True:
        yield from loader


def _collate(rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    import torch

    tokens = torch.stack([row["tokens"] for row in rows]).long()
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
