"""Which checkpoints a run may go on from after `train.skip` was changed. Imports no torch.

A checkpoint that was made with other batches than the config now asks for is of another history: the run goes back to
the newest one whose history is its own.
"""

from dataclasses import dataclass
from pathlib import Path

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest
from harness.data.skips import Skips


@dataclass(frozen=True)
class Choice:
    """The complete checkpoints of a run, by whether they have trained on the batches that the config asks for."""

    usable: list[int]
    """Steps, newest first: these have, or what they have done can't be read, which whoever opens them finds out."""
    disagreeing: list[int]
    """Steps, newest first: these have not."""


def choose(checkpoints: Path, skips: Skips) -> Choice:
    """Sort the checkpoints in `checkpoints`. Reads manifests from the newest to the first that agrees with `skips`."""
    steps = folders.complete_steps(checkpoints)
    disagreeing = []
    for step in steps:
        try:
            manifest = Manifest.read(folders.complete_path(checkpoints, step))
        except CorruptCheckpoint:
            continue
        if skips.agrees(step, manifest.skips):
            break
        disagreeing.append(step)
    return Choice([step for step in steps if step not in disagreeing], disagreeing)


def no_way_back(checkpoints: Path, choice: Choice, skips: Skips) -> str:
    """Says which checkpoint would be needed where all that can be read disagree with `skips`."""
    oldest = choice.disagreeing[-1]
    recorded = Skips(Manifest.read(folders.complete_path(checkpoints, oldest)).skips)
    common = skips.common_steps(recorded.ranges) or 0
    needed = f"a checkpoint of step {common} or before is needed" if common else "no checkpoint can be gone on from"
    return (
        f"train.skip={_listing(skips)}: from step {common + 1} on the run has trained on other batches than that, so "
        f"{needed}. The oldest that can be read in {checkpoints} is of step {oldest}, made with "
        f"train.skip={_listing(recorded)}. Set that again, with ranges added that begin after batch "
        f"{recorded.batch_of_step(oldest)}; or start a new run under another run.name; or move the checkpoints away to start "
        "this one from the beginning."
    )


def _listing(skips: Skips) -> str:
    return str([list(found) for found in skips.ranges]).replace(" ", "")
