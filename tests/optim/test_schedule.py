import itertools
import math
from dataclasses import replace

import pytest

from harness.config.compose import compose
from harness.config.schema import Decay, LrOverride, OptimConfig, ScheduleConfig
from harness.optim.schedule import Curve, learning_rate

STEPS = 4_720_000
SMOLLM3 = ScheduleConfig(warmup_steps=2000, decay_steps=522_000)
PEAK = OptimConfig(lr=2e-4)


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (1, 1e-7),
        (1000, 1e-4),
        (2000, 2e-4),
        (2001, 2e-4),
        (4_198_000, 2e-4),
        (4_198_001, 2e-4 * 521_999 / 522_000),
        (4_459_000, 1e-4),
        (4_719_999, 2e-4 / 522_000),
        (4_720_000, 0.0),
    ],
)
def test_smollm3_schedule(step: int, expected: float) -> None:
    assert learning_rate(SMOLLM3, PEAK, STEPS, step) == pytest.approx(expected, rel=1e-9)


def test_first_step_of_the_decay_is_the_first_below_the_peak() -> None:
    assert learning_rate(SMOLLM3, PEAK, STEPS, 4_198_000) == 2e-4 > learning_rate(SMOLLM3, PEAK, STEPS, 4_198_001)


def test_cosine_decays_from_the_warmup_to_its_share_of_the_peak() -> None:
    schedule = ScheduleConfig(name="cosine", warmup_steps=10, decay=Decay.cosine, final_lr_ratio=0.1)
    rates = [learning_rate(schedule, PEAK, 110, step) for step in range(1, 111)]
    assert rates[9] == 2e-4
    assert rates[59] == pytest.approx(2e-5 + 1.8e-4 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[-1] == pytest.approx(2e-5)
    assert rates[9:] == sorted(rates[9:], reverse=True)


def test_constant_stays_at_the_peak() -> None:
    schedule = ScheduleConfig(warmup_steps=5, decay=Decay.constant)
    assert {learning_rate(schedule, PEAK, 50, step) for step in range(5, 51)} == {2e-4}


def test_no_warmup_and_no_decay() -> None:
    schedule = ScheduleConfig(decay_steps=0)
    assert {learning_rate(schedule, PEAK, 50, step) for step in range(1, 51)} == {2e-4}


def test_linear_falls_in_a_line_from_the_warmup_to_the_end() -> None:
    schedule = ScheduleConfig(name="linear", warmup_steps=10, final_lr_ratio=0.1)
    rates = [learning_rate(schedule, PEAK, 110, step) for step in range(1, 111)]
    assert rates[9] == 2e-4
    assert rates[-1] == pytest.approx(2e-5)
    assert [a - b for a, b in itertools.pairwise(rates[9:])] == pytest.approx([1.8e-6] * 100)


@pytest.mark.parametrize("decay", list(Decay))
def test_an_override_changes_the_peak_and_not_the_shape(decay: Decay) -> None:
    plain = ScheduleConfig(warmup_steps=10, decay_steps=50, decay=decay, final_lr_ratio=0.1)
    changes = [LrOverride(step=80, lr=5e-5), LrOverride(step=5, lr=4e-4)]  # in any order
    changed = replace(plain, overrides=changes)
    for step in range(1, 101):
        factor = 1 if step < 5 else 2 if step < 80 else 0.25
        expected = factor * learning_rate(plain, PEAK, 100, step)
        assert learning_rate(changed, PEAK, 100, step) == pytest.approx(expected, rel=1e-12)


def test_the_file_of_the_linear_schedule() -> None:
    schedule = compose(
        ["run.name=r", "schedule=linear", "model=tiny", "train.steps=200", "train.global_batch_size=8"]
    ).schedule
    assert schedule.name == "linear"
    assert [learning_rate(schedule, PEAK, 200, step) for step in (50, 100, 150, 200)] == pytest.approx(
        [1e-4, 2e-4, 1e-4, 0]
    )


@pytest.mark.parametrize(
    ("schedule", "end"),
    [
        (SMOLLM3, 4_198_000),
        (ScheduleConfig(decay_steps=0), None),
        (ScheduleConfig(decay_steps=None), None),
        (ScheduleConfig(decay_steps=100, decay=Decay.constant), None),
        (
            ScheduleConfig(warmup_steps=STEPS - 100, decay_steps=100),
            None,
        ),  # no step at the peak but the last of the warm-up
        (ScheduleConfig(warmup_steps=100, decay_steps=100, decay=Decay.cosine), STEPS - 100),
    ],
)
def test_where_the_plateau_ends(schedule: ScheduleConfig, end: int | None) -> None:
    curve = Curve(schedule, PEAK, STEPS)
    assert curve.plateau_end == end
    if end is not None:
        assert curve.share(end) == 1.0 > curve.share(end + 1)
