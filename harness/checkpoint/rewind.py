"""Which checkpoints a run may go on from after `train.skip` or `data.change_at` was changed. Imports no torch.

A checkpoint that was made with other batches than the config now asks for is of another history: the run goes back to
the newest one whose history is its own.
"""

from dataclasses import dataclass
from pathlib import Path

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest
from harness.data.lineage import Lineage
from harness.data.skips import Skips


@dataclass(frozen=True)
class Choice:
    """The complete checkpoints of a run, by whether they have trained on the batches that the config asks for."""

    usable: list[int]
    """Steps, newest first: these have, or what they have done can't be read, which whoever opens them finds out."""
    disagreeing: list[int]
    """Steps, newest first: these have not."""


def choose(checkpoints: Path, lineage: Lineage) -> Choice:
    """Sort the checkpoints in `checkpoints`. Reads manifests from the newest to the first that agrees with `lineage`."""
    steps = folders.complete_steps(checkpoints)
    disagreeing = []
    for step in steps:
        try:
            manifest = Manifest.read(folders.complete_path(checkpoints, step))
        except CorruptCheckpoint:
            continue
        if lineage.agrees(step, manifest.skips, manifest.changes):
            break
        disagreeing.append(step)
    return Choice([step for step in steps if step not in disagreeing], disagreeing)


def no_way_back(checkpoints: Path, choice: Choice, lineage: Lineage) -> str:
    """Says which checkpoint would be needed where all that can be read disagree with `lineage`."""
    oldest = choice.disagreeing[-1]
    manifest = Manifest.read(folders.complete_path(checkpoints, oldest))
    recorded = Lineage(Skips(manifest.skips), manifest.changes)
    common = lineage.common_steps(manifest.skips, manifest.changes) or 0
    needed = f"a checkpoint of step {common} or before is needed" if common else "no checkpoint can be gone on from"
    return (
        f"{lineage.describe()}: from step {common + 1} on the run has trained on other batches than that, so "
        f"{needed}. The oldest that can be read in {checkpoints} is of step {oldest}, made with "
        f"{recorded.describe()}. Set that again, with {'ranges' if lineage.skips.ranges else 'entries'} added that begin "
        f"after batch {recorded.skips.batch_of_step(oldest)}; or start a new run under another run.name; or move the "
        "checkpoints away to start this one from the beginning."
    )
