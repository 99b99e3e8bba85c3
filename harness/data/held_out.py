"""The sequences of a validation: always the same ones, each of them once, drawn from all held-out files alike."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from harness.config.schema import SourceConfig
from harness.data.errors import DataError
from harness.data.permutation import derive_key, permute
from harness.data.token_files import TokenSource
from harness.data.windows import Windows


class HeldOutOrder:
    """Which window of which source is sequence number i, for i below `count`; higher ones begin again at 0.

    A keyed shuffle of all windows of all sources: each source has its share by size, no window comes twice, and the first
    n sequences are the same for any `count` and `global_batch_size`. Raises DataError where there are fewer than `count`.
    """

    def __init__(
        self, sources: Sequence[TokenSource], *, count: int, seed: int, seq_len: int, global_batch_size: int
    ) -> None:
        self.sources = tuple(sources)
        self.seq_len = seq_len
        self.global_batch_size = global_batch_size
        self._count = count
        self.windows = tuple(Windows(source, seq_len) for source in sources)
        self._ends = np.cumsum([found.count for found in self.windows])
        if problem := too_few(sources, seq_len, count):
            raise DataError(problem)
        self._key = derive_key(seed, "validation")

    def samples(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For int64 [n]: numbers of the sources int64 [n], windows int64 [n]."""
        places = permute(np.asarray(indices, dtype=np.int64) % self._count, int(self._ends[-1]), self._key)
        sources = np.searchsorted(self._ends, places, side="right")
        return sources, places - np.concatenate([[0], self._ends])[sources]


def too_few(sources: Sequence[TokenSource], seq_len: int, count: int) -> str | None:
    """What is wrong where `sources` hold less than `count` sequences."""
    held = {source.name: Windows(source, seq_len).count for source in sources}
    total = sum(held.values())
    if total >= count:
        return None
    listing = ", ".join(f"{name} {windows:,}" for name, windows in held.items())
    return (
        f"train.eval_sequences={count}: data.validation holds {total:,} sequences of data.seq_len={seq_len} ({listing}). "
        f"Set train.eval_sequences={total} or less, or hold out more text."
    )


def shared_paths(training: Mapping[str, SourceConfig], validation: Mapping[str, SourceConfig]) -> list[str]:
    """One sentence for each path that both groups name, however they spell it."""
    places = {_place(source.path): (name, source.path) for name, source in training.items() if source.path}
    return [
        in_both(name, source.path, *places[place])
        for name, source in validation.items()
        if source.path and (place := _place(source.path)) in places
    ]


def in_both(validation: str, path: str | Path, training: str, training_path: str | Path) -> str:
    """Says that a source of `data.validation` is one of `data.sources`."""
    return (
        f"data.validation.{validation}.path={path}: the run trains on these files (data.sources.{training}.path="
        f"{training_path}), so their loss would say nothing. Give files that are held out."
    )


def _place(path: str) -> Path:
    return Path(path).expanduser().resolve()
