"""Finds the newest checkpoint that is whole and reads it, at any number of ranks."""

import time
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata
from tqdm import tqdm

from harness.checkpoint import folders, rewind
from harness.checkpoint.manifest import (
    CorruptCheckpoint,
    Manifest,
    check_file,
    check_sizes,
    differences,
    not_if_away,
    whole_identity,
)
from harness.checkpoint.reports import Reports
from harness.checkpoint.state import OPTIONAL, State
from harness.checkpoint.storage import TensorPlanner, TensorReader, read_metadata
from harness.data.lineage import Lineage, how_to_change
from harness.data.order import other_format
from harness.optim.schedule import Curve
from harness.run.files import keep_trying
from harness.run.folder import RunFolder

ROOM_SECONDS = 600.0
"""How long a full disk is waited for, where the run would be refused otherwise."""


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
    lineage: Lineage | None = None,
    curve: Curve | None = None,
    absent: set[str] | None = None,
) -> Manifest | None:
    """Read the newest valid checkpoint whose past is that of `lineage`, and that `curve` can be followed from, into `state`'s
    tensors.

    Returns its manifest, or None where the run has no checkpoint. Called by all ranks. Corrupt checkpoints are passed
    over, with an event each; newer ones with another history of skipped batches or mixtures, or whose decay the longer run
    would undo, are moved aside (`folders.abandon`), with the event "rewind". Raises CannotResume where none is left, or where the chosen one is of another model or data order.
    After an exception `state` may be half read.

    `OPTIONAL` state that the checkpoint has not, or has in another shape, is left as it is and its names go into `absent`.
    """
    checkpoints, lineage = run.checkpoints_dir, lineage or Lineage()
    found: list[Any] = [rewind.choose(checkpoints, lineage, curve) if reports.rank == 0 else None]
    dist.broadcast_object_list(found, src=0, group=group)
    choice: rewind.Choice = found[0]
    for step in choice.usable:
        folder = folders.complete_path(checkpoints, step)
        started = time.perf_counter()
        manifest, metadata, problem = _open(folder, verify, group, reports)
        checked = time.perf_counter()
        if problem is None:
            assert manifest is not None and metadata is not None
            _refuse_others(folder, manifest, identity, lineage)
            there = _readable(state, metadata)
            problem = _read(folder, there, metadata, group, reports)
        if problem is None:
            assert manifest is not None
            if absent is not None:
                absent |= state.keys() - there.keys()
            newer = [passed for passed in choice.passed_over if passed > step]
            if newer:
                _go_back(run, newer, step, rewind.reason(choice, lineage, curve), lineage, group, reports)
            reports.restored(step, manifest.size, checked - started, time.perf_counter() - checked)
            return manifest
        reports.corrupt(step, problem)
    if choice.passed_over:
        raise CannotResume(rewind.no_way_back(checkpoints, choice, lineage, curve))
    if choice.usable:
        raise CannotResume(
            f"none of the {len(choice.usable)} checkpoints in {checkpoints} can be read (see above). Repair the file "
            "system, or move them away to start the run from the beginning."
        )
    return None


def _refuse_others(folder: Path, manifest: Manifest, identity: dict[str, Any], lineage: Lineage) -> None:
    """Raises CannotResume where the checkpoint belongs to another model or another order of the data."""
    changes = lineage.history(manifest.step)[1]
    different = differences(whole_identity(manifest.identity, manifest.changes), whole_identity(identity, changes))
    if not different:
        return
    if problem := other_format(manifest.identity.get("data.format")):
        raise CannotResume(f"{folder} can't be gone on from: {problem}")
    advice = "Set these keys back, or start a new run under another run.name."
    if any(line.startswith(("data.stages", "data.sources")) for line in different):
        advice += f" Or, {how_to_change(lineage.skips.batch_of_step(manifest.step + 1))}."
    raise CannotResume(f"{folder} is a checkpoint of another run:\n  " + "\n  ".join(different) + "\n" + advice)


def _go_back(
    run: RunFolder,
    newer: list[int],
    step: int,
    reason: str,
    lineage: Lineage,
    group: dist.ProcessGroup,
    reports: Reports,
) -> None:
    """Move the checkpoints of steps `newer` aside and say so. Raises CannotResume on all ranks where that fails."""
    problem = None
    if reports.rank == 0:
        left = max(run.last_step(), *newer)
        try:
            folder = keep_trying(
                lambda: folders.abandon(run.checkpoints_dir, newer, reports.ledger.attempt or 0, step),
                str(run.checkpoints_dir / folders.ABANDONED),
                ROOM_SECONDS,
            )
            facts = {
                "from_step": left,
                "to_step": step,
                "skip": [list(found) for found in lineage.skips.ranges],
                "change_at": [change["step"] for change in lineage.changes],
                "abandoned": str(folder),
            }
            reports.ledger.write("rewind", step, **facts, why=f"from step {left}, for {reason}")
            print(
                f"went back from step {left} to step {step}, since {reason} changes what came after: the "
                f"checkpoints of {'step' if len(newer) == 1 else 'steps'} {', '.join(map(str, sorted(newer)))} are now in "
                f"{folder} and may be deleted",
                flush=True,
            )
        except OSError as error:
            problem = f"{reason}: {run.checkpoints_dir}: newer checkpoints can't be moved aside: {error}"
    if (problem := _any_problem(problem, group)) is not None:
        raise CannotResume(problem)


def _open(
    folder: Path, verify: bool, group: dist.ProcessGroup, reports: Reports
) -> tuple[Manifest | None, Metadata | None, str | None]:
    """Check manifest and files, each rank its share of them: (manifest, metadata, the first problem of any rank)."""
    manifest, metadata, problem, rank = None, None, None, reports.rank
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
                reports.board.progress()
        metadata = read_metadata(folder, {record.name for record in manifest.files})
    except CorruptCheckpoint as error:
        problem = str(error)
    return manifest, metadata, _any_problem(problem, group)


def _readable(state: State, metadata: Metadata) -> State:
    """`state` without what a checkpoint need not have and this one has not."""
    stored = {name: getattr(entry, "size", None) for name, entry in metadata.state_dict_metadata.items()}
    return {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(OPTIONAL) or stored.get(name) == tensor.shape
    }


def _read(folder: Path, state: State, metadata: Metadata, group: dist.ProcessGroup, reports: Reports) -> str | None:
    planner = TensorPlanner(on_tensor=reports.board.progress)
    try:
        dcp_load(state, storage_reader=TensorReader(folder, metadata), planner=planner, process_group=group)
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        not_if_away(cause)
        return f"rank {rank}: {type(cause).__name__}: {cause}"
    return None


def _any_problem(problem: str | None, group: dist.ProcessGroup) -> str | None:
    problems: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(problems, problem, group=group)
    return next((found for found in problems if found is not None), None)
