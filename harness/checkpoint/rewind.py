"""Which checkpoints a run may go on from after its config was changed. Imports no torch.

A checkpoint that was made with other batches than `train.skip` and `data.change_at` now ask for is of another history. One
whose learning rate had decayed is nothing to train on from at the peak. The run goes back to the newest one of its own.
"""

import contextlib
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path

from harness.checkpoint import folders
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest
from harness.data.lineage import Lineage
from harness.data.order import other_format
from harness.data.skips import Skips
from harness.optim.schedule import Curve


@dataclass(frozen=True)
class Choice:
    """The complete checkpoints of a run, by whether they have trained on the batches that the config asks for."""

    usable: list[int]
    """Steps, newest first: these have, or what they have done can't be read, which whoever opens them finds out."""
    disagreeing: list[int]
    """Steps, newest first: these have not."""
    decayed: list[int] = field(default_factory=list)
    """Steps, newest first: these have, but were trained at a learning rate that the config would raise again at once."""

    @property
    def passed_over(self) -> list[int]:
        """Steps, newest first, of all that can't be gone on from."""
        return sorted(self.disagreeing + self.decayed, reverse=True)


def choose(checkpoints: Path, lineage: Lineage, curve: Curve | None = None) -> Choice:
    """Sort the checkpoints in `checkpoints`. Reads manifests from the newest to the first that agrees with `lineage` and from
    which `curve`, the learning rate, can be followed."""
    steps = folders.complete_steps(checkpoints)
    disagreeing, decayed = [], []
    for step in steps:
        try:
            manifest = Manifest.read(folders.complete_path(checkpoints, step))
        except CorruptCheckpoint:
            continue
        if not lineage.agrees(step, manifest.skips, manifest.changes):
            disagreeing.append(step)
        elif curve and manifest.lr_share is not None and curve.undoes_decay(step, manifest.lr_share):
            decayed.append(step)
        else:
            break
    return Choice([step for step in steps if step not in disagreeing + decayed], disagreeing, decayed)


def reason(choice: Choice, lineage: Lineage, curve: Curve | None) -> str:
    """The keys that make the run go back, with their values."""
    return lineage.describe() if choice.disagreeing or curve is None else curve.describe()


def accept_jump(step: int, curve: Curve) -> str:
    """What to set to train on from the decayed checkpoint of `step` all the same."""
    return f"schedule.overrides=[{{step: {step + 1}, lr: {curve.peak(step + 1):g}}}]"


def new_rate(checkpoints: Path, step: int, curve: Curve) -> str | None:
    """How the learning rate changes for a run that goes on from the checkpoint of `step`; None: it follows its curve."""
    with contextlib.suppress(CorruptCheckpoint):
        trained = Manifest.read(folders.complete_path(checkpoints, step)).lr
        if trained is not None and step < curve.steps and not isclose(trained, curve.rate(step), abs_tol=1e-12):
            return f"the learning rate's curve changes: {trained:.3g} at step {step:,}, {curve.rate(step + 1):.3g} at step {step + 1:,}"
    return None


def other_order(checkpoints: Path, choice: Choice) -> str | None:
    """What is wrong with the newest usable checkpoint where its data came in an order that this version does not draw."""
    for step in choice.usable[:1]:
        folder = folders.complete_path(checkpoints, step)
        with contextlib.suppress(CorruptCheckpoint):  # passed over when it is read
            if problem := other_format(Manifest.read(folder).identity.get("data.format")):
                return f"{folder} can't be gone on from: {problem}"
    return None


def no_way_back(checkpoints: Path, choice: Choice, lineage: Lineage, curve: Curve | None = None) -> str:
    """Says which checkpoint would be needed if none of those that can be read can be gone on from."""
    if choice.decayed and curve is not None:
        return _none_before_decay(checkpoints, choice.decayed[0], curve)
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


def _none_before_decay(checkpoints: Path, step: int, curve: Curve) -> str:
    share = Manifest.read(folders.complete_path(checkpoints, step)).lr_share or 0.0
    return (
        f"{curve.describe()}: the learning rate would jump from {share:.0%} of its peak at step {step:,}, the newest "
        f"checkpoint, to {curve.share(step + 1):.0%} at step {step + 1:,}, and {checkpoints} holds no earlier one, from before "
        f"a decay, to go back to. To train on from step {step:,} all the same, set {accept_jump(step, curve)} (any lr). "
        "Or set these keys back; or start a new run under another run.name."
    )
