import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.loader.consume import STEP_SECONDS
from benchmarks.loader.curves import Curve, draw, lost, rate, waited
from benchmarks.loader.shape import END, SEQ_LEN, samples, write_shards
from benchmarks.loader.table import Run, Seek, seek_table, speed_table, versions_line
from benchmarks.loader.tiered_fs import BLOCK_BYTES, Control, Residency

STEADY = [0.5 * number for number in range(1, 201)]
"""Two steps a second for 100 s."""


def test_rate_counts_the_steps_between_two_moments() -> None:
    assert rate(STEADY, 10, 20) == 2
    assert rate([], 0, 10) == 0
    assert rate([10.0, 10.5], 10.0, 11.0) == 1  # one that was done at the beginning belongs to what was before


def test_lost_is_what_is_missing_by_the_usual_rate() -> None:
    stalled = [moment for moment in STEADY if not 40 < moment <= 55]
    assert lost(STEADY, (5, 20), 20, 80) == 0
    assert lost(stalled, (5, 20), 20, 80) == pytest.approx(0.25)
    with pytest.raises(ValueError, match="no step between 5 and 20 s"):
        lost([], (5, 20), 20, 80)


def test_waited_counts_the_part_of_each_wait_that_lies_inside() -> None:
    # the second step waits from 10.25 to 14, the third from 14.25 to 20.25
    curve = Curve("", [10.25, 14 + STEP_SECONDS, 20.25 + STEP_SECONDS], [0.0, 3.75, 6.0], "")
    assert waited(curve, 0, 100) == pytest.approx(0.0975)
    assert waited(curve, 12, 16) == pytest.approx((2 + 1.75) / 4)
    assert waited(curve, 30, 40) == 0


def test_the_table_has_medians_and_ratios_to_our_best() -> None:
    runs = [
        Run("harness", 1, 40e6, 100, versions={"torch": "2.13"}),
        Run("rival", 0, 10e6, 50, versions={"torch": "2.12"}),
        Run("harness", 1, 60e6, 120),
        Run("rival", 0, 30e6, 60),
        Run("harness", 1, 50e6, 110),
        Run("rival", 0, 20e6, 70),
        Run("other", 2, None, error="not installed"),
    ]
    lines = speed_table(runs).splitlines()
    assert lines[2] == "| harness | 1 threads | 50.0 | 40.0 | 60.0 | 1.00 | 120 | 3 |"
    assert lines[3] == "| rival | 0 processes | 20.0 | 10.0 | 30.0 | 0.40 | 70 | 3 |"
    assert lines[4] == "| other | 2 processes | not installed | | | | | 1 |"
    assert versions_line(runs) == "torch 2.12 and 2.13"


def test_the_seek_table_says_how_far_memory_differs() -> None:
    text = seek_table([Seek(0, 0.01, 0.002, 300.0), Seek(4_719_000, 0.02, 0.003, 312.0)])
    assert "| 4,719,000 | 0.020 | 3.00 | 312 |" in text and "RSS differs by 12 MB" in text


def test_samples_are_the_windows_of_the_shard(tmp_path: Path) -> None:
    (shard,) = write_shards(tmp_path, 1, 3 * SEQ_LEN + 7)
    ids = np.fromfile(shard, "<u4")
    rows = samples(shard)
    assert rows.shape == (3, SEQ_LEN + 1) and END in ids
    assert (rows[1] == ids[SEQ_LEN : 2 * SEQ_LEN + 1]).all()
    assert write_shards(tmp_path, 1, 3 * SEQ_LEN + 7) == [shard]
    assert (np.fromfile(shard, "<u4") == ids).all()


def test_only_the_first_read_of_an_evicted_block_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("benchmarks.loader.tiered_fs.time.sleep", slept.append)
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"evicted": ["1.ds"], "first_read_seconds": 2, "outage": ""}))
    residency = Residency(Control(str(control)))
    residency.wait("/0.ds", 0, 100)
    assert not slept
    residency.wait("/1.ds", 10, 100)
    residency.wait("/1.ds", 500, 100)
    assert slept == [2]
    residency.wait("/1.ds", BLOCK_BYTES - 1, 2)  # half of it is here
    residency.wait("/1.ds", BLOCK_BYTES, 10)
    residency.wait("/1.ds.sums", 0, 10)
    assert slept == [2, 2, 2]


def test_an_outage_fails_every_read(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    control.write_text(json.dumps({"outage": "error"}))
    with pytest.raises(OSError, match="outage"):
        Residency(Control(str(control))).wait("/0.ds", 0, 1)


def test_curves_become_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curves = [Curve("one", STEADY, [0.0] * 200, "#000000"), Curve("none", [], [], "#ff0000", failed=True)]
    draw(curves, 2.0, [(20, 80, "cold"), (90, 95, "gone")], 100, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
