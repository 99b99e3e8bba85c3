"""State that a checkpoint need not have: a run that asks for more than was saved goes on all the same."""

import torch

from harness.checkpoint.restore import restore
from tests.checkpoint.conftest import IDENTITY, Alone


def test_what_was_not_saved_is_named_and_left_alone(alone: Alone) -> None:
    saved = {"model.w": torch.arange(4.0), "spikes.ring": torch.ones(2, 8)}
    alone.saver().save(saved, 3, 30)
    state = {
        "model.w": torch.zeros(4),
        "spikes.ring": torch.full((2, 16), 7.0),
        "ema.w": torch.full((4,), 7.0),
    }
    absent: set[str] = set()
    manifest = restore(
        alone.run, state, identity=IDENTITY, verify=True, group=alone.group, reports=alone.reports, absent=absent
    )
    assert manifest is not None and manifest.step == 3
    assert torch.equal(state["model.w"], torch.arange(4.0))
    assert absent == {"spikes.ring", "ema.w"}
    assert state["spikes.ring"].eq(7).all() and state["ema.w"].eq(7).all()
