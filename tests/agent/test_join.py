"""Joining an attempt: who claims it, who is kept out, and when a run is refused."""

from pathlib import Path

import pytest

from harness import slurm
from harness.agent import join
from harness.agent.join import Refused, join_attempt
from harness.config.compose import compose
from harness.config.schema import RootConfig
from harness.run.attempt import claim, write_end
from harness.run.exit_codes import CRASH_LOOP
from harness.run.folder import RunFolder
from harness.run.node import Node


def node(index: int = 0, nodes: tuple[str, ...] = ("n1", "n2"), restart_count: int = 0) -> Node:
    return Node(nodes[index], "127.0.0.1", index, list(nodes), "7", restart_count, on_slurm=True)


@pytest.fixture
def config() -> RootConfig:
    return compose(["+exp=tiny"])


@pytest.fixture(autouse=True)
def _slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "sick_nodes", lambda nodes: {})
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, "RUNNING", False))


def test_head_claims_and_the_others_find_it(tmp_path: Path, config: RootConfig) -> None:
    run = RunFolder(tmp_path)
    attempt = join_attempt(run, config, node())
    assert join_attempt(run, config, node(index=1)) == attempt
    assert (attempt.rendezvous_host, attempt.nodes) == ("127.0.0.1", ["n1", "n2"])
    assert [event["event"] for event in run.events()] == ["attempt_start"]


def test_lost_node_is_recorded_and_excluded(tmp_path: Path, config: RootConfig) -> None:
    run = RunFolder(tmp_path)
    claim(run, "7.0", "7", ["n1", "n2"], "h", 1)
    write_end(run, 0, "n1", "terminated")
    join_attempt(run, config, node(nodes=("n1", "n3"), restart_count=1))
    assert list(run.excluded_nodes()) == ["n2"]
    assert [event["event"] for event in run.events()] == ["node_excluded", "restart", "attempt_start"]
    assert run.events()[1]["reason"] == "node_fail"


def test_an_allocation_with_an_excluded_node_is_given_back(
    tmp_path: Path, config: RootConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []
    monkeypatch.setattr(slurm, "requeue_without", lambda job_id, nodes: asked.append((job_id, nodes)))
    monkeypatch.setattr(join.time, "sleep", lambda seconds: None)
    run = RunFolder(tmp_path)
    claim(run, "7.0", "7", ["n1", "n2"], "h", 1)
    write_end(run, 0, "n1", "terminated")
    with pytest.raises(Refused):
        join_attempt(run, config, node(restart_count=1))
    assert asked == [("7", ["n2"])]
    assert run.attempts() == [0]


def test_a_run_that_gets_nowhere_is_refused(tmp_path: Path, config: RootConfig) -> None:
    run = RunFolder(tmp_path)
    claim(run, "7.4", "7", ["n1"], "h", 1)
    for start in range(5):
        run.ledger(0).write("restart", step=3, reason="unknown", starts=f"7.{start + 1}")
    with pytest.raises(Refused, match="max_restarts_without_progress") as refused:
        join_attempt(run, config, node(restart_count=5))
    assert refused.value.exit_code == CRASH_LOOP
