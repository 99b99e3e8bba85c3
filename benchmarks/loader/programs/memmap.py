"""A map-style data set over memory-mapped token files with an index of all samples, and torch's DataLoader.

The scheme of nanotron's loaders, written anew: a permutation of all samples in memory, a slice of a map per sample,
samples stacked by a collator in worker processes, one of them unless told otherwise (`data.num_loading_workers`).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loader.shape import BATCH, SEQ_LEN

PACKAGES = ("torch", "numpy")


class Samples:
    """Sample number i of the shuffled epoch."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._maps = [np.memmap(path, dtype="<u4", mode="r") for path in paths]
        pairs = [
            np.stack([np.full(count, number), np.arange(count)], axis=1)
            for number, file in enumerate(self._maps)
            if (count := (len(file) - 1) // SEQ_LEN) > 0
        ]
        self._index = np.random.default_rng(1).permutation(np.concatenate(pairs))

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, number: int) -> np.ndarray:
        file, sample = self._index[number]
        begin = sample * SEQ_LEN
        return self._maps[file][begin : begin + SEQ_LEN + 1].astype(np.int64)


def collate(rows: list[np.ndarray]) -> tuple[Any, Any]:
    """Rows of SEQ_LEN + 1 tokens -> inputs and labels."""
    import torch

    tokens = torch.from_numpy(np.stack(rows))
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()


def prepare(shards: Sequence[Path], folder: Path) -> None:
    """Reads the token files as they are."""
    for shard in shards:
        (folder / shard.name).symlink_to(shard)


def loader_over(folder: Path, batch: int, workers: int) -> Any:
    """A DataLoader over all token files in `folder`, in the shuffled order."""
    from torch.utils.data import DataLoader

    return DataLoader(
        Samples(sorted(folder.glob("*.ds"))),  # type: ignore[arg-type]
        batch_size=batch,
        num_workers=workers,
        collate_fn=collate,
        drop_last=True,
        persistent_workers=workers > 0,
    )


def batches(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch."""
    loader = loader_over(folder, BATCH, workers)
    while True:
        yield from loader
