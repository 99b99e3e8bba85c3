"""Finds the newest checkpoint that is whole and reads it, at any number of ranks."""

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from tqdm import tqdm

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest, check_file, check_sizes, differences
from harness.checkpoint.reports import Reports
from harness.checkpoint.state import State
from harness.checkpoint.storage import TensorPlanner, TensorReader, read_metadata
from harness.run.folder import RunFolder


class CannotResume(Exception):
    """There are checkpoints, but none that this run can go on from; starting over would hide that."""


def restore(
    run: RunFolder,
    state: State,
    *,
    identity: dict[str, Any],
    verify: bool,
    group: dist.ProcessGroup,
    reports: Reports,
) -> Manifest | None:
    """Read the newest valid checkpoint into `state`'s tensors; its manifest, or None where the run has no checkpoint.

    Called by all ranks. Corrupt checkpoints are passed over, with an event each. Raises CannotResume where none is left,
    or where the newest valid one is of another model or data order. After an exception `state` may be half read.
    """
    steps: list[Any] = [folders.complete_steps(run.checkpoints_dir) if reports.rank == 0 else None]
    dist.broadcast_object_list(steps, src=0, group=group)
    for step in steps[0]:
        folder = folders.complete_path(run.checkpoints_dir, step)
        started = time.perf_counter()
        manifest, metadata, problem = _open(folder, verify, group, reports.rank)
        checked = time.perf_counter()
        if problem is None:
            assert manifest is not None and metadata is not None
            if different := differences(manifest.identity, identity):
                raise CannotResume(
                    f"{folder} is a checkpoint of another run:\n  " + "\n  ".join(different) + "\n"
                    "Set these keys back, or start a new run under another run.name."
                )
            problem = _read(folder, state, metadata, group)
        if problem is None:
            assert manifest is not None
            reports.restored(step, manifest.size, checked - started, time.perf_counter() - checked)
            return manifest
        reports.corrupt(step, problem)
    if steps[0]:
        raise CannotResume(
            f"none of the {len(steps[0])} checkpoints in {run.checkpoints_dir} can be read (see above). Repair the file "
            "system, or move them away to start the run from the beginning."
        )
    return None


def _open(
    folder: Path, verify: bool, group: dist.ProcessGroup, rank: int
) -> tuple[Manifest | None, Metadata | None, str | None]:
    """Check manifest and files, each rank its share of them: (manifest, metadata, the first problem of any rank)."""
    manifest, metadata, problem = None, None, None
    try:
        manifest = Manifest.read(folder)
        check_sizes(folder, manifest)
        if verify:
            own = manifest.files[rank :: dist.get_world_size(group)]
            if rank == 0:
                print(
                    f"checking {folder.name}: {manifest.size / 1e6:,.1f} MB in {len(manifest.files)} files", flush=True
                )
            for record in tqdm(own, f"checking {folder.name}", unit="file", disable=rank != 0 or len(own) < 8):
                check_file(folder, record)
        metadata = read_metadata(folder, {record.name for record in manifest.files})
    except CorruptCheckpoint as error:
        problem = str(error)
    return manifest, metadata, _any_problem(problem, group)


def _read(folder: Path, state: State, metadata: Metadata, group: dist.ProcessGroup) -> str | None:
    try:
        dcp_load(state, storage_reader=TensorReader(folder, metadata), planner=TensorPlanner(), process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        return f"rank {rank}: {type(cause).__name__}: {cause}"
    return None


def _any_problem(problem: str | None, group: dist.ProcessGroup) -> str | None:
    problems: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group=group)
    return next((found for found in problems if found is not None), None)
