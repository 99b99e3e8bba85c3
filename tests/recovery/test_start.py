"""Before a start of the job: what is recorded, who is kept out, and when a run is refused."""

from pathlib import Path

import pytest

from harness import slurm
from harness.config.compose import compose
from harness.config.schema import RootConfig
from harness.recovery import start
from harness.recovery.requeue import RequeueRefused
from harness.recovery.start import Refused, begin
from harness.run.attempt import claim, write_end
from harness.run.exit_codes import CRASH_LOOP, JOB_FAILED, OK
from harness.run.folder import RunFolder
from harness.run.node import Node


def node(*nodes: str, restart_count: int = 0, job_id: str = "7", on_slurm: bool = True) -> Node:
    return Node(nodes[0], "127.0.0.1", 0, list(nodes), job_id, restart_count, on_slurm)


@pytest.fixture
def config() -> RootConfig:
    return compose(["+exp=tiny", "cluster.nodes=2", "cluster=slurm", "cluster.gpus_per_node=0"])


@pytest.fixture(autouse=True)
def _slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "sick_nodes", lambda nodes: {})
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, "RUNNING"))
    monkeypatch.setattr(slurm, "expand_nodes", lambda text: text.split(",") if text else [])
    states(monkeypatch, "n1", "n2", "n3")


def states(monkeypatch: pytest.MonkeyPatch, *nodes: str) -> None:
    monkeypatch.setattr(slurm, "node_states", lambda nodes_=None, partition=None: dict.fromkeys(nodes, "idle"))


@pytest.fixture
def requeues(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """What the job was requeued without."""
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(start, "requeue", lambda node, keep_off, wait, ledger: asked.append(tuple(keep_off)))
    return asked


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """n2 was lost in the attempt before."""
    run = RunFolder(tmp_path)
    claim(run, "7.0", "7", ["n1", "n2"], "h", 1)
    write_end(run, 0, "n1", "terminated")
    return run


def names(run: RunFolder) -> list[str]:
    return [event["event"] for event in run.events()]


def test_a_first_start_needs_no_word(tmp_path: Path, config: RootConfig) -> None:
    begin(RunFolder(tmp_path), config, node("n1", "n2"))
    assert names(RunFolder(tmp_path)) == []


def test_a_lost_node_is_recorded_and_excluded(run: RunFolder, config: RootConfig) -> None:
    begin(run, config, node("n1", "n3", restart_count=1))
    assert list(run.excluded_nodes()) == ["n2"]
    assert names(run) == ["node_excluded", "restart"]
    restart = run.events()[1]
    assert (restart["reason"], restart["bad_nodes"], restart["starts"]) == ("node_fail", ["n2"], "7.1")


def test_an_allocation_with_an_excluded_node_is_given_back(
    run: RunFolder, config: RootConfig, requeues: list[tuple[str, ...]]
) -> None:
    config.cluster.exclude = ["n9"]
    with pytest.raises(Refused, match="excluded n2") as refused:
        begin(run, config, node("n1", "n2", restart_count=1))
    assert refused.value.exit_code == OK
    assert requeues == [("n2", "n9")], "the user's exclusions stay"
    assert run.attempts() == [0]
    # the start that follows is the same incident
    begin(run, config, node("n1", "n3", restart_count=2))
    assert names(run) == ["node_excluded", "restart", "requeued_elsewhere"]


def test_a_node_that_is_needed_gets_another_chance(
    run: RunFolder, config: RootConfig, monkeypatch: pytest.MonkeyPatch, requeues: list[tuple[str, ...]]
) -> None:
    states(monkeypatch, "n1", "n2")
    begin(run, config, node("n1", "n2", restart_count=1))
    assert requeues == [] and run.excluded_nodes() == {}
    assert names(run) == ["node_excluded", "restart", "node_readmitted"]
    assert run.events()[-1]["readmitted"] == "n2"


def test_an_edit_of_the_file_takes_effect(run: RunFolder, config: RootConfig, requeues: list[tuple[str, ...]]) -> None:
    begin(run, config, node("n1", "n3", restart_count=1))
    run.excluded_path.write_text("{}")
    begin(run, config, node("n1", "n2", restart_count=1))
    assert requeues == []


def test_a_run_that_gets_nowhere_is_refused(run: RunFolder, config: RootConfig) -> None:
    for count in range(5):
        run.ledger(0).write("restart", step=0, reason="unknown", starts=f"7.{count + 1}")
    with pytest.raises(Refused, match="max_restarts_without_progress") as refused:
        begin(run, config, node("n1", "n3", restart_count=5))
    assert refused.value.exit_code == CRASH_LOOP
    assert names(run)[-1] == "gave_up"


def test_launching_again_gives_a_new_budget(run: RunFolder, config: RootConfig) -> None:
    for count in range(5):
        run.ledger(0).write("restart", step=0, reason="unknown", starts=f"7.{count + 1}")
    begin(run, config, node("n1", "n3", job_id="8"))
    assert run.events()[-1]["reason"] == "user"


def test_a_requeue_that_slurm_refuses_ends_the_job_with_its_words(
    run: RunFolder, config: RootConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RequeueRefused("requeue is disabled")

    monkeypatch.setattr(start, "requeue", refuse)
    with pytest.raises(Refused, match="requeue is disabled") as refused:
        begin(run, config, node("n1", "n2", restart_count=1))
    assert refused.value.exit_code == JOB_FAILED


def test_on_this_machine_nobody_is_kept_out(
    run: RunFolder, config: RootConfig, requeues: list[tuple[str, ...]]
) -> None:
    run.exclude_node("here", "lost")
    begin(run, config, node("here", job_id="4711", on_slurm=False))
    assert requeues == [] and "here" in run.excluded_nodes()
