"""A controller that is silent or late, runs that get nowhere, and runs that do although they log nothing."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial

import pytest

from tests.e2e.runs import Bench, Run
from tests.e2e.test_bad_nodes import ENDLESS, job, launch, wait_for_checkpoint
from tests.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.timeout(420)]


@pytest.fixture(autouse=True)
def _whole_cluster(slurm_cluster: SlurmCluster) -> Iterator[None]:
    slurm_cluster.repair()
    yield
    slurm_cluster.repair()


def kill(slurm_cluster: SlurmCluster, node: str, part: str) -> None:
    """SIGKILL the process on `node` whose command line holds `part`."""
    pids = [pid for pid, command in slurm_cluster.pids(node).items() if part in command and "srun" not in command]
    assert pids, slurm_cluster.pids(node)
    os.kill(pids[0], signal.SIGKILL)


def controller_pid(slurm_cluster: SlurmCluster) -> int:
    return int((slurm_cluster.dir / "run" / "slurmctld.pid").read_text())


def test_a_silent_controller_does_not_end_the_run(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    run = launch(slurm, "silent", 1, *ENDLESS)
    wait_for_checkpoint(run)
    os.kill(controller_pid(slurm_cluster), signal.SIGSTOP)
    try:
        kill(slurm_cluster, "n1", "harness.agent ")
        time.sleep(45)
    finally:
        os.kill(controller_pid(slurm_cluster), signal.SIGCONT)
    wait_for_checkpoint(run, starts=2)
    (restart,) = run.events("restart")
    assert "n1: its agent was killed (SIGKILL)" in restart["why"]


def test_an_agents_death_is_one_restart_that_names_the_node(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    """Slurm repeats after a minute what a node has not answered; that must not reach the new start."""
    run = launch(slurm, "agent-dies", 2, *ENDLESS)
    wait_for_checkpoint(run)
    kill(slurm_cluster, "n2", "harness.agent ")
    wait_for_checkpoint(run, starts=2)
    time.sleep(70)
    assert [event.get("why") for event in run.events("restart")] == ["n2: its agent was killed (SIGKILL)"], (
        run.describe()
    )
    assert job(slurm, run)["JobState"] == "RUNNING" and job(slurm, run)["Restarts"] == "1"


def test_short_starts_with_a_checkpoint_each_go_on(slurm: Bench) -> None:
    """A run that logs nothing between two time limits gets further all the same."""
    quiet = ("train.log_every=100000", "cluster.max_restarts_without_progress=1")
    run = launch(slurm, "short", 1, *ENDLESS, *quiet)
    for start in range(1, 5):
        wait_for_checkpoint(run, start)
        command = ["scancel", "--signal=USR2", str(run.folder.record()["job_id"])]
        subprocess.run(command, env=slurm.env, check=True)
    wait_for_checkpoint(run, 5)
    assert [event["reason"] for event in run.events("restart")] == ["timeout"] * 4
    assert run.events("gave_up") == []


def test_ranks_that_die_on_another_node_than_the_head_end_the_run(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    run = launch(slurm, "loop", 2, *ENDLESS, "checkpoint.every_steps=100000", "cluster.max_restarts_without_progress=1")
    for deaths in range(6):
        run.wait(partial(_trains_or_gave_up, run, deaths), f"start {deaths + 1} of training, or the end", 120)
        if run.events("gave_up"):
            break
        kill(slurm_cluster, "n2", "harness.train ")
        run.wait(partial(_failed, run, deaths), "the failure in the ledger", 60)
    assert "cluster.max_restarts_without_progress=1" in run.events("gave_up")[0]["why"]
    run.wait(lambda: job(slurm, run)["JobState"] == "FAILED", "the end of the job", 60)


def _trains_or_gave_up(run: Run, deaths: int) -> bool:
    return len(run.events("train_start")) > deaths or bool(run.events("gave_up"))


def _failed(run: Run, deaths: int) -> bool:
    return sum(event["node"] == "n2" for event in run.events("rank_failed")) > deaths
