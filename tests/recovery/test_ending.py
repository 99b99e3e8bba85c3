"""Telling how the last attempt ended, from its files and from Slurm's word about its nodes."""

from pathlib import Path

import pytest

from harness import slurm
from harness.recovery.ending import Ending
from harness.recovery.ending import previous_ending as ending_of
from harness.run.attempt import Outcome, claim, write_end, write_outcome
from harness.run.folder import RunFolder
from harness.run.node import Node

NODES = ["n1", "n2", "n3"]


def previous_ending(run: RunFolder, node: Node) -> Ending | None:
    return ending_of(run, node, run.events())


def node(restart_count: int = 1, job_id: str = "7") -> Node:
    return Node("n1", "10.0.0.1", 0, NODES, job_id, restart_count, on_slurm=True)


@pytest.fixture(autouse=True)
def _slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm holds no node for sick and the job was not preempted, unless a test says otherwise."""
    monkeypatch.setattr(slurm, "sick_nodes", lambda nodes: {})
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, "RUNNING", False))


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path)
    claim(run, "7.0", "7", NODES, "h", 1)
    return run


def spoke(run: RunFolder, *nodes: str) -> None:
    for name in nodes:
        write_end(run, 0, name, "terminated")


def test_first_attempt_has_no_past(tmp_path: Path) -> None:
    assert previous_ending(RunFolder(tmp_path), node()) is None


def test_the_node_that_left_no_word_was_lost(run: RunFolder) -> None:
    """Also where it is back already and Slurm calls it healthy."""
    spoke(run, "n1", "n3")
    ending = previous_ending(run, node())
    assert ending is not None and ending.reason == "node_fail"
    assert list(ending.bad_nodes) == ["n2"]


def test_slurm_names_the_lost_node_of_a_job_that_fell_silent(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "sick_nodes", lambda nodes: {"n3": "down*"})
    ending = previous_ending(run, node())
    assert ending is not None and (ending.reason, ending.bad_nodes) == ("node_fail", {"n3": "down*"})


def test_all_silent_and_all_healthy_blames_nobody(run: RunFolder) -> None:
    ending = previous_ending(run, node())
    assert ending is not None and (ending.reason, ending.bad_nodes) == ("node_fail", {})


def test_what_the_batch_script_recorded_is_believed(run: RunFolder) -> None:
    run.ledger(0).write("restart", step=5, reason="timeout", why="saved", starts="7.1")
    ending = previous_ending(run, node())
    assert ending is not None and (ending.reason, ending.recorded, ending.bad_nodes) == ("timeout", True, {})


def test_a_node_that_could_not_start_is_known_from_the_batch_script(tmp_path: Path) -> None:
    """Also where no attempt was ever claimed."""
    run = RunFolder(tmp_path)
    run.ledger(None).write(
        "restart", reason="unknown", how="batch script", why="no Python on n1", starts="7.1", bad_nodes=["n1"]
    )
    ending = previous_ending(run, node())
    assert ending is not None and (ending.recorded, ending.bad_nodes) == (True, {"n1": "no Python on n1"})


def test_a_start_that_gave_an_excluded_node_back_is_no_second_loss(run: RunFolder) -> None:
    spoke(run, "n1", "n3")
    first = previous_ending(run, node(1))
    assert first is not None and not first.recorded
    run.ledger(0).write("restart", reason=first.reason, why=first.why, starts="7.1", bad_nodes=["n2"])
    run.ledger(0).write("requeued_elsewhere", reason=first.reason, why="holds n2", starts="7.2")
    second = previous_ending(run, node(2))
    assert second is not None and (second.recorded, second.reason) == (True, "node_fail")


def test_a_silent_controller_costs_what_it_knows(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(*_: object) -> None:
        raise slurm.SlurmError("scontrol did not answer")

    monkeypatch.setattr(slurm, "sick_nodes", silent)
    monkeypatch.setattr(slurm.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(slurm.time, "monotonic", iter(range(0, 10_000, 50)).__next__)
    spoke(run, "n1", "n3")
    ending = previous_ending(run, node())
    assert ending is not None and list(ending.bad_nodes) == ["n2"]


def test_requeued_by_hand(run: RunFolder) -> None:
    spoke(run, *NODES)
    write_outcome(run, 0, Outcome("terminated", "", "SIGTERM", final=False))
    ending = previous_ending(run, node())
    assert ending is not None and ending.reason == "user"


def test_a_reason_that_the_outcome_names(run: RunFolder) -> None:
    spoke(run, *NODES)
    write_outcome(run, 0, Outcome("failed", "storage", "node n1 can't read", final=False, exit_code=1))
    ending = previous_ending(run, node())
    assert ending is not None and (ending.reason, ending.why) == ("storage", "node n1 can't read")


def test_preempted(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, "RUNNING", True))
    spoke(run, *NODES)
    write_outcome(run, 0, Outcome("terminated", "", "SIGTERM", final=False))
    ending = previous_ending(run, node())
    assert ending is not None and ending.reason == "preempt"


def test_launched_again(run: RunFolder) -> None:
    ending = previous_ending(run, node(restart_count=0, job_id="8"))
    assert ending is not None and ending.reason == "user"
