"""mosaicml-streaming: MDS shards, a sample a row, its StreamingDataset, torch's DataLoader."""

import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

from benchmarks.loader.programs.memmap import collate
from benchmarks.loader.shape import BATCH, SEQ_LEN, samples

PACKAGES = ("mosaicml-streaming", "torch", "numpy")


def prepare(shards: Sequence[Path], folder: Path) -> None:
    """MDS files of its default size."""
    _without_vision()
    from streaming import MDSWriter

    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:int32:{SEQ_LEN + 1}"}) as writer:
        for shard in shards:
            for row in samples(shard):
                writer.write({"tokens": row})


def batches(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """Epoch after epoch."""
    _without_vision()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory
    from torch.utils.data import DataLoader

    clean_stale_shared_memory()  # what an earlier process that was ended has left
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=workers, collate_fn=_collate, drop_last=True)
    while True:
        yield from loader


def _without_vision() -> None:
    """The library imports torchvision, which on machines without CUDA does not load with every build of torch; text needs
    nothing of it."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in (
            "torchvision",
            "torchvision.transforms",
            "torchvision.transforms.functional",
            "torchvision.datasets",
        ):
            sys.modules[name] = MagicMock(__name__=name, __spec__=ModuleSpec(name, None))
        sys.modules["torchvision.datasets"].VisionDataset = type("VisionDataset", (), {})  # type: ignore[attr-defined]


def _collate(rows: list[dict[str, Any]]) -> tuple[Any, Any]:
    return collate([row["tokens"].astype("int64") for row in rows])
