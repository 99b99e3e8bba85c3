from pathlib import Path

import pytest

from harness.train.speed import Calibrator, peak_flops


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H100 NVL", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("", None),
    ],
)
def test_only_known_gpus_have_a_peak(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak


def test_median_after_the_warmup_is_kept_for_restarts(tmp_path: Path) -> None:
    path = tmp_path / "calibration.json"
    calibrator = Calibrator(path, 2, 1000, steps=10_000)
    for _ in range(20):
        assert calibrator.step_done(9.0) is None  # warm-up
    for seconds in [0.5] * 19:
        assert calibrator.step_done(seconds) is None
    found = calibrator.step_done(60.0)  # one stall does not move a median
    assert found is not None and (found.step_seconds, found.tokens_per_second) == (0.5, 2000.0)
    assert calibrator.step_done(0.1) is None and calibrator.found == found
    calibrator.keep()
    assert Calibrator(path, 2, 1000, steps=10_000).found == found
    assert Calibrator(path, 4, 1000, steps=10_000).found is None  # another number of ranks
    assert Calibrator(path, 2, 2000, steps=10_000).found is None  # another batch
    path.write_text("{")
    assert Calibrator(path, 2, 1000, steps=10_000).found is None


def test_a_slow_start_does_not_become_the_norm_and_a_slow_stretch_neither(tmp_path: Path) -> None:
    calibrator = Calibrator(tmp_path / "c.json", 1, 1000, steps=10_000)
    found = [calibrator.step_done(seconds) for seconds in [9.0] * 20 + [2.0] * 20 + [1.0] * 20 + [5.0] * 40]
    assert [calibration.step_seconds for calibration in found if calibration] == [2.0, 1.0]
    assert calibrator.found is not None and calibrator.found.tokens_per_second == 1000.0


def test_short_runs_are_calibrated_too(tmp_path: Path) -> None:
    calibrator = Calibrator(tmp_path / "c.json", 1, 10, steps=5)
    assert calibrator.step_done(3.0) is None
    found = calibrator.step_done(1.0)
    assert found is not None and found.step_seconds == 1.0
