"""What a run's config changes about batches that it might have trained on already: those it leaves out, and the mixture.

Both leave the past as it was: a run that has done the steps before a change is the run that the config asks for.
"""

from collections.abc import Sequence
from typing import Any

from harness.config.schema import RootConfig, StageConfig
from harness.data.order import stages_as_json
from harness.data.skips import NO_SKIPS, Range, Skips

Entry = dict[str, Any]
"""A change of the mixture as JSON: `step`, the first batch of the new `stages`; from an order also the `sources`."""


class Lineage:
    """`train.skip` and `data.change_at` of a run."""

    def __init__(self, skips: Skips = NO_SKIPS, changes: Sequence[Entry] = ()) -> None:
        self.skips = skips
        self.changes = tuple(changes)

    def __repr__(self) -> str:
        return f"Lineage({self.describe()})"

    def history(self, step: int) -> tuple[list[Range], list[Entry]]:
        """The ranges that the first `step` steps passed over, and the changes that they trained on some of."""
        return self.skips.history(step), self._begun(step)

    def agrees(self, step: int, ranges: Sequence[Sequence[int]], changes: Sequence[Entry]) -> bool:
        """Whether a run that has done `step` steps with that history has trained on the same batches as this one."""
        return self.skips.agrees(step, ranges) and _mixtures(self._begun(step)) == _mixtures(changes)

    def common_steps(self, ranges: Sequence[Sequence[int]], changes: Sequence[Entry]) -> int | None:
        """Steps from the start on that train on the same batches here as in a run with that history; None: all."""
        found = self.skips.common_steps(ranges)
        ours, theirs = _mixtures(self.changes), _mixtures(changes)
        same = next((n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
        same = min(len(ours), len(theirs)) if same is None else same
        if differing := [mixtures[same][0] for mixtures in (ours, theirs) if len(mixtures) > same]:
            before = self.skips.steps_before(min(differing))
            found = before if found is None else min(found, before)
        return found

    def describe(self) -> str:
        """The keys with their values, for messages."""
        skips = "train.skip=" + str([list(found) for found in self.skips.ranges]).replace(" ", "")
        if not self.changes:
            return skips
        steps = f"data.change_at (steps {', '.join(str(change['step']) for change in self.changes)})"
        return f"{skips} and {steps}" if self.skips.ranges else steps

    def _begun(self, step: int) -> list[Entry]:
        batch = self.skips.batch_of_step(step)
        return [change for change in self.changes if change["step"] <= batch]


def lineage_of(config: RootConfig) -> Lineage:
    """What a config says, without a look at its token files. Raises DataError where `train.skip` holds no ranges."""
    changes = [{"step": change.step, "stages": stages_as_json(change.stages)} for change in config.data.change_at]
    return Lineage(Skips(config.train.skip), changes)


def how_to_change(batch: int, stages: Sequence[StageConfig] = ()) -> str:
    """How to go on with other `stages` from a batch on, where `data.stages` itself was changed."""
    listing = ", ".join(
        f"{{until_step: {'null' if stage.until_step is None else stage.until_step}, weights: "
        f"{{{', '.join(f'{name}: {weight:g}' for name, weight in stage.weights.items())}}}}}"
        for stage in stages
        if stage.until_step is None or stage.until_step >= batch
    )
    return (
        "to change the mixture of a run that has begun, leave data.stages as it was and say from which step on it differs: "
        f"'data.change_at=[{{step: {batch}, stages: [{listing or '...'}]}}]'; new text goes into a source of its own"
    )


def _mixtures(changes: Sequence[Entry]) -> list[tuple[int, Any]]:
    return [(change["step"], change["stages"]) for change in changes]
