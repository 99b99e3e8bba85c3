"""The stager's and the file system's word as metrics."""

import os
import time
from pathlib import Path

import pytest

from harness.data.stage_status import StageState, StageStatus, write_status
from harness.observe.residency import ResidencyCollector
from harness.observe.staging import FRESH_SECONDS, SpareCollector, StagingCollector


def values(collector: StagingCollector | SpareCollector | ResidencyCollector) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in collector.collect()
        for sample in family.samples
    }


def test_a_node_without_a_stager_is_not_ready(tmp_path: Path) -> None:
    assert values(StagingCollector(tmp_path / "status.json")) == {("harness_stage_ready",): 0.0}


def test_what_the_stager_says(tmp_path: Path) -> None:
    path = tmp_path / "status.json"
    status = StageStatus(files_wanted=10, files_staged=5, files_left=2, files_failed=1)
    status.bytes_wanted, status.bytes_staged, status.bytes_copied = 1000, 250, 300
    write_status(path, status)
    assert values(StagingCollector(path)) == {
        ("harness_stage_ready",): 0.0,
        ("harness_stage_ready_ratio",): 0.25,
        ("harness_stage_bytes_total",): 300.0,
        ("harness_stage_files", "staged"): 5.0,
        ("harness_stage_files", "no_room"): 2.0,
        ("harness_stage_files", "failed"): 1.0,
        ("harness_stage_files", "waiting"): 2.0,
    }
    status.state, status.bytes_staged = StageState.done, 1000
    write_status(path, status)
    assert values(StagingCollector(path))["harness_stage_ready",] == 1.0


def test_spares_that_are_there(tmp_path: Path) -> None:
    """Not the run's own nodes, and not one that has fallen silent."""
    now = time.time()
    for name, state, updated in (
        ("n1", StageState.done, now),
        ("n8", StageState.running, now),
        ("n9", StageState.done, now),
        ("old", StageState.done, now - FRESH_SECONDS - 1),
    ):
        write_status(tmp_path / f"{name}.json", StageStatus(state=state, updated=updated))
    assert values(SpareCollector(tmp_path, ["n1"])) == {
        ("harness_stage_spare_ready", "n8"): 0.0,
        ("harness_stage_spare_ready", "n9"): 1.0,
    }
    assert values(SpareCollector(tmp_path / "none", ["n1"])) == {}


def test_residency_by_source(tmp_path: Path) -> None:
    for name in ("hot", "cold"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.ds").write_bytes(os.urandom(1 << 16) if name == "hot" else b"")
        os.truncate(tmp_path / name / "0.ds", 1 << 16)
    found = values(ResidencyCollector({name: str(tmp_path / name) for name in ("hot", "cold")}))
    assert {labels[2]: value for labels, value in found.items()} == {"hot": 1.0, "cold": 0.0}
    assert {os.path.ismount(labels[1]) for labels in found} == {True}


def test_a_source_that_is_gone_is_an_error_of_the_collector(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        values(ResidencyCollector({"gone": str(tmp_path / "gone")}))
