"""Writes torch's distributed checkpoints, and reads them without running what a file says.

`.metadata` is a pickle, and entries that are not tensors go through an unrestricted torch.load: whoever can write to the
checkpoint folder could run code in every rank of everybody who resumes. Here only the classes that describe tensors are
unpickled, and only tensors are read.
"""

import io
import pickle
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner, FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from harness.checkpoint.manifest import CorruptCheckpoint, not_if_away

METADATA = ".metadata"
_ALLOWED = {
    *(
        ("torch.distributed.checkpoint.metadata", name)
        for name in (
            "BytesStorageMetadata",
            "ChunkStorageMetadata",
            "Metadata",
            "MetadataIndex",
            "StorageMeta",
            "TensorProperties",
            "TensorStorageMetadata",
            "_MEM_FORMAT_ENCODING",
        )
    ),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),
}


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return super().find_class(module, name)
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        raise CorruptCheckpoint(
            f"{METADATA} wants to load {module}.{name}, which no checkpoint of ours needs: not loaded"
        )


def read_metadata(folder: Path, files: Collection[str]) -> Metadata:
    """`.metadata` of a checkpoint that consists of `files`. Raises CorruptCheckpoint for anything but tensors in those."""
    try:
        with open(folder / METADATA, "rb") as f:
            metadata = _MetadataUnpickler(f).load()
    except CorruptCheckpoint:
        raise
    except Exception as error:  # a damaged pickle raises nearly anything
        not_if_away(error)
        raise CorruptCheckpoint(f"{METADATA} can't be read: {error!r}") from error
    if not isinstance(metadata, Metadata) or not isinstance(metadata.storage_data, dict):
        raise CorruptCheckpoint(f"{METADATA} does not describe a checkpoint")
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            raise CorruptCheckpoint(f"{METADATA} has {name}, which is not a tensor: not loaded")
    for index, info in metadata.storage_data.items():
        if info.relative_path not in files:
            raise CorruptCheckpoint(f"{METADATA} puts {index.fqn} in {info.relative_path}, which the manifest has not")
    if metadata.storage_meta is None:
        metadata.storage_meta = StorageMeta()
    return metadata


class TensorWriter(FileSystemWriter):
    """torch's writer, one synced file per rank, that tells a full disk from a bug."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, single_file_per_rank=True, sync_files=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__  # closing the half-written tensor failed too, with a message about positions
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror, str(self.path)) from error


class WatchedPlanner(DefaultSavePlanner):
    """torch's planner for writing, which tells of each tensor, or part of one, that is about to be written."""

    def __init__(self, on_tensor: Callable[[], None]) -> None:
        super().__init__()
        self._on_tensor = on_tensor

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor | io.BytesIO:
        self._on_tensor()
        return super().resolve_data(write_item)


class TensorReader(FileSystemReader):
    """torch's reader with metadata that `read_metadata` has checked."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        super().__init__(folder)
        self._metadata = metadata

    def read_metadata(self) -> Metadata:  # no **kwargs: torch must not fall back to other metadata files
        return self._metadata


class TensorPlanner(DefaultLoadPlanner):
    """torch's planner for tensors only."""

    def __init__(self, on_tensor: Callable[[], None] = lambda: None) -> None:
        """`on_tensor` is called after each tensor, or part of one, that was read."""
        super().__init__()
        self._on_tensor = on_tensor

    def commit_tensor(self, read_item: ReadItem, tensor: torch.Tensor) -> None:
        self._on_tensor()

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> NoReturn:
        raise CorruptCheckpoint(f"{read_item.dest_index.fqn} is not a tensor: not loaded")
