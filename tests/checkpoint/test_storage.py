"""A checkpoint folder is shared: reading one must not run what somebody has written there."""

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest, describe_file
from harness.checkpoint.restore import restore
from harness.checkpoint.storage import METADATA, read_metadata
from tests.checkpoint.conftest import IDENTITY, Alone, state_of


class Payload:
    """Runs a command in whoever unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def replace_metadata(folder: Path, content: object) -> None:
    """Plant `.metadata`, with a manifest that vouches for it."""
    (folder / METADATA).write_bytes(pickle.dumps(content))
    manifest = Manifest.read(folder)
    files = [describe_file(folder / record.name) for record in manifest.files]
    Manifest(**{**vars(manifest), "files": tuple(files)}).write(folder)


def test_planted_code_does_not_run_and_the_older_checkpoint_is_used(alone: Alone, tmp_path: Path) -> None:
    saver = alone.saver()
    saver.save(state_of(1.0), 1, 10)
    saver.save(state_of(2.0), 2, 20)
    marker = tmp_path / "ran"
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload works
    marker.unlink()
    replace_metadata(folders.complete_path(alone.run.checkpoints_dir, 2), Payload(marker))
    state = state_of(0.0)
    manifest = restore(alone.run, state, identity=IDENTITY, verify=True, group=alone.group, reports=alone.reports)
    assert not marker.exists()
    assert manifest is not None and manifest.step == 1
    assert torch.equal(state["model.w"], state_of(1.0)["model.w"])
    refusal = alone.run.events()[-1]
    assert refusal["event"] == "checkpoint_corrupt" and "system, which no checkpoint of ours needs" in refusal["reason"]


@pytest.mark.parametrize("content", [Payload(Path("/nonexistent")), eval, torch.nn.Linear, torch.load])
def test_only_classes_of_a_checkpoint_are_unpickled(content: object, tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(pickle.dumps(content))
    with pytest.raises(CorruptCheckpoint, match="not loaded"):
        read_metadata(tmp_path, {METADATA})


def test_entries_that_are_not_tensors_are_refused(alone: Alone) -> None:
    saver = alone.saver()
    saver.save({**state_of(1.0), "extra": [1, 2]}, 1, 10)  # type: ignore[dict-item]
    folder = folders.complete_path(alone.run.checkpoints_dir, 1)
    with pytest.raises(CorruptCheckpoint, match="extra, which is not a tensor: not loaded"):
        read_metadata(folder, {record.name for record in Manifest.read(folder).files})


def test_files_outside_of_the_manifest_are_refused(alone: Alone) -> None:
    alone.saver().save(state_of(1.0), 1, 10)
    folder = folders.complete_path(alone.run.checkpoints_dir, 1)
    with pytest.raises(CorruptCheckpoint, match="which the manifest has not"):
        read_metadata(folder, {METADATA})


@pytest.mark.parametrize(
    "content", [b"", b"junk", pickle.dumps(3), pickle.dumps(Metadata({"a": BytesStorageMetadata()}))]
)
def test_anything_else_is_corrupt(content: bytes, tmp_path: Path) -> None:
    (tmp_path / METADATA).write_bytes(content)
    with pytest.raises(CorruptCheckpoint):
        read_metadata(tmp_path, {METADATA})
