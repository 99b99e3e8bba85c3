"""Reads weights out of a checkpoint in one process, whatever number of ranks wrote them."""

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from tqdm import tqdm

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest, check_file, check_sizes
from harness.checkpoint.storage import TensorPlanner, TensorReader, read_metadata
from harness.export.errors import ExportError
from harness.run.folder import RunFolder

READ_BYTES = 2**30
"""About as much is read at once: every file is opened once for each such piece."""


@dataclass(frozen=True)
class Weights:
    """Tensors of one kind (`model` or `ema`) in a complete checkpoint whose files are as they were written."""

    folder: Path
    manifest: Manifest
    kind: str
    _metadata: Metadata

    @property
    def shapes(self) -> dict[str, torch.Size]:
        """Parameter's name in the model -> its full shape."""
        prefix = f"{self.kind}."
        return {
            name.removeprefix(prefix): entry.size
            for name, entry in self._metadata.state_dict_metadata.items()
            if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
        }

    def read(self, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
        """The full tensors in fp32, in this order; no more than about READ_BYTES of them are in memory at once.

        Raises ExportError."""
        prefix = f"{self.kind}."
        for name, tensor in read_tensors(self.folder, self._metadata, [prefix + name for name in names]):
            yield name.removeprefix(prefix), tensor.float()


def open_weights(run: RunFolder, step: int | None, kind: str) -> Weights:
    """The weights of `kind` after `step` steps (None: of the newest complete checkpoint), with every file's checksum
    verified. Raises ExportError."""
    steps = folders.complete_steps(run.checkpoints_dir)
    if not steps:
        raise ExportError(f"{run.path} has no complete checkpoint yet: wait for the first (checkpoint.every_steps)")
    if step is not None and step not in steps:
        raise ExportError(
            f"--step {step}: {run.path} has no complete checkpoint of it; there are {', '.join(map(str, steps[::-1]))}"
        )
    folder = folders.complete_path(run.checkpoints_dir, steps[0] if step is None else step)
    try:
        manifest = Manifest.read(folder)
        check_sizes(folder, manifest)
        with tqdm(total=manifest.size, desc=f"checking {folder.name}", unit="B", unit_scale=True) as progress:
            for record in manifest.files:
                check_file(folder, record)
                progress.update(record.size)
        metadata = read_metadata(folder, {record.name for record in manifest.files})
    except CorruptCheckpoint as error:
        raise _unusable(folder, str(error)) from error
    return Weights(folder, manifest, kind, metadata)


def read_tensors(folder: Path, metadata: Metadata, names: Sequence[str]) -> Iterator[tuple[str, torch.Tensor]]:
    """Full tensors of a checkpoint by their names in it, in this order; about READ_BYTES of them are in memory at once.

    Raises ExportError where they can't be read."""
    for piece in _pieces(names, metadata):
        entries = {name: metadata.state_dict_metadata[name] for name in piece}
        state = {
            name: torch.empty(entry.size, dtype=entry.properties.dtype)
            for name, entry in entries.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="torch.distributed is disabled")
                dcp_load(state, storage_reader=TensorReader(folder, metadata), planner=TensorPlanner(), no_dist=True)
        except CheckpointException as error:
            cause, _ = next(iter(error.failures.values()))
            raise _unusable(folder, f"{type(cause).__name__}: {cause}") from error
        for name in piece:
            yield name, state.pop(name)


def _pieces(names: Sequence[str], metadata: Metadata) -> Iterator[list[str]]:
    piece: list[str] = []
    size = 0
    for name in names:
        entry = metadata.state_dict_metadata[name]
        assert isinstance(entry, TensorStorageMetadata)  # read_metadata lets nothing else through
        more = math.prod(entry.size) * entry.properties.dtype.itemsize
        if piece and size + more > READ_BYTES:
            yield piece
            piece, size = [], 0
        piece.append(name)
        size += more
    if piece:
        yield piece


def _unusable(folder: Path, problem: str) -> ExportError:
    others = [
        step for step in folders.complete_steps(folder.parent) if folders.complete_path(folder.parent, step) != folder
    ]
    hint = f"; there are others: --step {' or '.join(map(str, others[::-1]))}" if others else ""
    if not folder.exists():
        return ExportError(f"{folder} was removed while it was read: the run keeps checkpoint.keep of them{hint}")
    return ExportError(f"{folder} can't be used: {problem}{hint}")
