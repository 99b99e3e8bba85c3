import math

import numpy as np
import pytest
import torch

from harness.optim.spike import SpikeDetector

CPU = torch.device("cpu")
NEVER = 10**9
"""Patience that no test exhausts."""


def judge(detector: SpikeDetector, loss: float, norm: float) -> bool:
    values = torch.tensor([loss, norm], dtype=torch.float64)
    return bool(detector.judge(values[0], values[1]))


def series(steps: int) -> np.ndarray:
    """Losses and norms as training gives them, with spikes and values that are not finite."""
    draw = np.random.default_rng(0)
    values = np.stack([3.0 - 0.002 * np.arange(steps), np.full(steps, 0.5)], axis=1) + 0.05 * draw.normal(
        size=(steps, 2)
    )
    for step, column, value in (
        (9, 0, 9.0),
        (40, 0, 4.0),
        (60, 1, 3.0),
        (61, 1, 3.0),
        (80, 0, math.nan),
        (90, 1, math.inf),
    ):
        values[step, column] = value
    values[100] = -9.0  # far below is no spike
    return values


def reference(values: np.ndarray, window: int, sigmas: float) -> list[bool]:
    accepted: list[np.ndarray] = []
    verdicts = []
    for row in values.astype(np.float32):
        skip = not np.isfinite(row).all()
        if len(accepted) >= window and not skip:
            past = np.array(accepted[-window:], dtype=np.float64)
            deviation = np.maximum(past.std(axis=0, ddof=1), 1e-3 * np.abs(past.mean(axis=0)))
            skip = bool((row > past.mean(axis=0) + sigmas * deviation).any())
        verdicts.append(skip)
        if not skip:
            accepted.append(row)
    return verdicts


@pytest.mark.parametrize(("window", "sigmas"), [(16, 6.0), (16, 2.0), (7, 3.0)])
def test_judges_as_a_plain_computation_does(window: int, sigmas: float) -> None:
    values = series(200)
    detector = SpikeDetector(window, sigmas, NEVER, CPU)
    expected = reference(values, window, sigmas)
    assert [judge(detector, *row) for row in values] == expected
    assert expected[40] and expected[60] and expected[61] and expected[80] and not expected[100]
    assert expected[9] is (window < 9)


def test_a_resumed_detector_judges_the_same() -> None:
    values = series(200)
    whole = SpikeDetector(16, 2.0, NEVER, CPU)
    verdicts = [judge(whole, *row) for row in values]
    for cut in (5, 16, 63):
        first, second = SpikeDetector(16, 2.0, NEVER, CPU), SpikeDetector(16, 2.0, NEVER, CPU)
        for row in values[:cut]:
            judge(first, *row)
        for name, tensor in second.state().items():
            tensor.copy_(first.state()[name])  # as a checkpoint is read
        assert [judge(second, *row) for row in values[cut:]] == verdicts[cut:]


def test_a_constant_series_has_no_spikes() -> None:
    detector = SpikeDetector(8, 6.0, NEVER, CPU)
    assert not any(judge(detector, 2.0, 1.0) for _ in range(8))
    assert judge(detector, 2.02, 1.0)  # beyond 6 thousandths
    assert not judge(detector, 2.01, 1.0)


def test_without_sigmas_only_what_is_not_finite_is_refused() -> None:
    detector = SpikeDetector(2, 0.0, NEVER, CPU)
    assert [judge(detector, *row) for row in ((1, 1), (1, 1), (1e9, 1), (math.nan, 1), (1, math.inf), (1, 1))] == [
        False, False, False, True, True, False,
    ]  # fmt: skip


def test_what_is_not_finite_never_enters_the_memory() -> None:
    detector = SpikeDetector(3, 6.0, NEVER, CPU)
    for row in ((1, 1), (math.nan, 1), (2, 2), (1, -math.inf), (3, 3)):
        judge(detector, *row)
    assert detector.state()["ring"].tolist() == [[1, 2, 3], [1, 2, 3]]
    assert detector.state()["count"].item() == 3


def test_a_window_without_deviation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"train\.spike_window=1: .* at least 2"):
        SpikeDetector(1, 6.0, NEVER, CPU)


def test_spikes_that_stay_are_the_new_level() -> None:
    detector = SpikeDetector(4, 6.0, 3, CPU)
    assert not any(judge(detector, 2.0, 1.0) for _ in range(4))
    level = [
        judge(detector, 5.0, 1.0),
        judge(detector, math.nan, 1.0),
        judge(detector, 5.0, 1.0),
        judge(detector, 5.0, 1.0),
    ]
    assert level == [True] * 4, "three spikes; the step between them that is not finite does not count"
    assert not any(judge(detector, 5.0, 1.0) for _ in range(4))
    assert judge(detector, 9.0, 1.0), "judged by the new level"
    assert not judge(detector, 5.0, 1.0)
    assert [judge(detector, 9.0, 1.0), judge(detector, 9.0, 1.0)] == [True, True]
    assert detector.state()["in_a_row"].item() == 2, "a step that was accepted ends the row"
