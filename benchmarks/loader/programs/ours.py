"""The harness's loader: threads in one process, checksums verified, positions made."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.loader.shape import BATCH, END, SEQ_LEN, VOCAB

if TYPE_CHECKING:
    from harness.data.loader import Loader
    from harness.data.observer import ReadObserver
    from harness.data.read_settings import ReadSettings

PACKAGES = ("numpy", "xxhash", "torch")


def prepare(shards: Sequence[Path], folder: Path) -> None:
    """Checksums beside links to the files."""
    from harness.data.checksums import write_checksums

    for shard in shards:
        (folder / shard.name).symlink_to(shard)
        write_checksums(folder / shard.name)


def loader_over(folder: Path, batch: int, reading: "ReadSettings", observer: "ReadObserver | None" = None) -> "Loader":
    """One rank's loader over all token files in `folder`; a step is a micro batch of `batch` sequences."""
    from harness.config.schema import StageConfig
    from harness.data.loader import Loader
    from harness.data.order import SampleOrder
    from harness.data.token_files import open_source

    source = open_source("web", folder)
    order = SampleOrder([source], [StageConfig(weights={"web": 1.0})], seed=1, seq_len=SEQ_LEN, global_batch_size=batch)
    return Loader(
        [source],
        order,
        global_batch_size=batch,
        micro_batch_size=batch,
        dp_rank=0,
        dp_size=1,
        start_step=0,
        seq_len=SEQ_LEN,
        eos_token_id=END,
        document_mask=True,
        vocab_size=VOCAB,
        reading=reading,
        observer=observer,
    )


def batches(folder: Path, workers: int) -> Iterator[tuple[Any, Any]]:
    """`workers` reading threads; a short queue, so that what is measured is reading and not what was read before. Ids come
    as int32: they are widened on the device."""
    import torch

    from harness.data.read_settings import ReadSettings

    with loader_over(folder, BATCH, ReadSettings(threads=workers, ahead_bytes=8 << 20)) as loader:
        for batch in loader:
            micro = batch.micro_batches[0]
            yield torch.from_numpy(micro.input_ids), torch.from_numpy(micro.labels)
