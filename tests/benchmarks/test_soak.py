"""The soak's verdict: what counts as a fault, and how its result reads."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.soak import __main__ as soak
from benchmarks.soak.__main__ import Result, Soak, render
from benchmarks.soak.injuries import INJURIES, Victim
from harness.run.folder import RunFolder
from slurm.devcluster.layout import Layout, Settings


@pytest.fixture
def bench(tmp_path: Path) -> Soak:
    return Soak(Layout(tmp_path, 0, Settings(nodes=8)), tmp_path, Result(seed=7), list(INJURIES))


def end(bench: Soak, run: RunFolder, tmp_path: Path) -> list[str]:
    bench._wait_for_end(run, Victim(bench._layout, run, tmp_path, tmp_path))
    return bench._result.faults


def test_a_run_that_ends_is_no_fault(bench: Soak, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.ledger(0).write("finished", step=300)
    assert end(bench, run, tmp_path) == []


def test_a_run_that_gives_up_is_one(bench: Soak, tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.ledger(0).write("gave_up", why="no way on")
    assert end(bench, run, tmp_path) == [f"{run.name}: gave up: no way on"]


def test_a_run_that_waits_for_ever_is_one(bench: Soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(soak.time, "monotonic", iter(range(0, 100_000, 100)).__next__)
    monkeypatch.setattr(Victim, "slurm", lambda self, *command: "what Slurm says")
    run = RunFolder(tmp_path)
    run.update_record(job_id="7")
    (fault,) = end(bench, run, tmp_path)
    assert "no step for 900 s after step 0" in fault


def test_the_table_says_what_was_done_and_whether_it_held() -> None:
    result = Result(7, runs=3, injuries=Counter({"power loss": 2}), restarts=Counter({"node_fail": 2}), seconds=1800)
    text = render(result)
    assert "30 minutes, 3 runs" in text and "| power loss | 2 |" in text and "2 node_fail" in text and "seed 7" in text
    assert "equal to the undisturbed run's in every run, bit for bit" in text
    assert "losses differ" in render(Result(7, faults=["run0: losses differ, first at step [11]"]))
