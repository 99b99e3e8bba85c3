"""Nodes that can't start, come back too early, wake up or are too few; and the user's own exclusions."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.runs import QUICK, SLURM, Bench, Run
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.timeout(420)]

VENV = Path(__file__).resolve().parents[2] / ".venv"
ENDLESS = ("train.steps=100000", "schedule.decay_steps=10", "checkpoint.every_steps=50", "checkpoint.keep=2")


@pytest.fixture(autouse=True)
def _whole_cluster(slurm_cluster: SlurmCluster) -> Iterator[None]:
    slurm_cluster.repair()
    yield
    slurm_cluster.repair()


def launch(slurm: Bench, name: str, nodes: int, *overrides: str) -> Run:
    slurm.launch(name, *SLURM, *QUICK, f"cluster.nodes={nodes}", f"train.global_batch_size={2 * nodes}", *overrides)
    return slurm.run(name)


def all_but(slurm_cluster: SlurmCluster, *kept: str) -> str:
    """The override that excludes all other nodes."""
    return f"cluster.exclude=[{','.join(name for name in slurm_cluster.nodes if name not in kept)}]"


def job(slurm: Bench, run: Run) -> dict[str, str]:
    command = ["scontrol", "--oneliner", "show", "job", str(run.folder.record()["job_id"])]
    shown = subprocess.run(command, env=slurm.env, capture_output=True, text=True, check=True).stdout
    return dict(field.split("=", 1) for field in shown.split() if "=" in field)


def wait_for_checkpoint(run: Run, starts: int = 1) -> None:
    """After the given number of starts of training."""
    run.wait(lambda: len(run.events("train_start")) >= starts, f"start {starts} of training", 180)
    began = run.events("train_start")[starts - 1]["time"]
    run.wait(lambda: any(e["time"] > began for e in run.events("checkpoint")), "a checkpoint", 120)


@contextmanager
def without_python(slurm_cluster: SlurmCluster, node: str) -> Iterator[None]:
    """The virtual environment is not there on this node."""
    slurm_cluster.exec(node, "mount", "-t", "tmpfs", "tmpfs", str(VENV))
    try:
        yield
    finally:
        slurm_cluster.exec(node, "umount", str(VENV))


def test_a_node_without_python_is_named_and_left_out(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    with without_python(slurm_cluster, "n2"):
        run = launch(slurm, "no-python", 2)
        run.wait_for_end()
    assert "n2" not in run.events("attempt_start")[-1]["nodes"], run.describe()
    assert "No such file or directory" in run.folder.excluded_nodes()["n2"]
    (restart,) = run.events("restart")
    assert (restart["reason"], restart["bad_nodes"]) == ("node_fail", ["n2"])


def test_a_batch_host_without_python_is_left_out(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    with without_python(slurm_cluster, "n1"):
        run = launch(slurm, "no-python-at-all", 1)
        run.wait_for_end()
    (attempt,) = run.events("attempt_start")
    assert "n1" not in attempt["nodes"], run.describe()
    assert list(run.folder.excluded_nodes()) == ["n1"]
    assert [event["bad_nodes"] for event in run.events("restart")] == [["n1"]]


def test_too_few_nodes_are_waited_for_by_name(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    """The only two nodes that the run may have: one can't start. It is tried again until it can."""
    with without_python(slurm_cluster, "n2"):
        run = launch(slurm, "too-few", 2, all_but(slurm_cluster, "n1", "n2"))
        run.wait(lambda: len(run.events("waiting")) >= 2, "two tries in vain", 120)
        assert "2 nodes needed, 1 healthy: n1" in run.events("waiting")[0]["why"]
    run.wait_for_end()
    assert run.folder.excluded_nodes() == {} and run.events("gave_up") == []


def test_an_early_return_of_a_lost_node_is_one_incident_and_keeps_the_users_exclusions(
    slurm: Bench, slurm_cluster: SlurmCluster
) -> None:
    run = launch(slurm, "early", 2, "cluster.exclude=[n8]", *ENDLESS)
    wait_for_checkpoint(run)
    slurm_cluster.kill("n1")
    run.wait(lambda: job(slurm, run)["JobState"] != "RUNNING", "Slurm to notice", 60)
    slurm_cluster.start("n1")
    wait_for_checkpoint(run, starts=2)
    assert "n1" not in run.events("attempt_start")[-1]["nodes"]
    assert [(e["reason"], e["bad_nodes"]) for e in run.events("restart")] == [("node_fail", ["n1"])], run.describe()
    if run.events("requeued_elsewhere"):  # Slurm had given it back to us
        assert set(job(slurm, run)["ExcNodeList"].split(",")) == {"n1", "n8"}


def test_a_run_that_needs_the_lost_node_takes_it_back(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    run = launch(slurm, "needed", 2, all_but(slurm_cluster, "n1", "n2"), *ENDLESS)
    wait_for_checkpoint(run)
    slurm_cluster.kill("n2")
    run.wait(lambda: job(slurm, run)["JobState"] != "RUNNING", "Slurm to notice", 60)
    slurm_cluster.start("n2")
    wait_for_checkpoint(run, starts=2)
    assert [event["readmitted"] for event in run.events("node_readmitted")] == ["n2"], run.describe()
    assert run.folder.excluded_nodes() == {}


def test_a_pending_run_takes_an_edited_exclusion(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    """Slurm keeps its own copy of the list; launching again applies the edit."""
    only_two = all_but(slurm_cluster, "n1", "n2")
    slurm_cluster.kill("n1")
    wait_for(lambda: "down" in slurm_cluster.states()["n1"] or None, "Slurm knows that n1 is down", 60)
    run = launch(slurm, "edited", 2, only_two)
    again = slurm.launch("edited", *SLURM, *QUICK, "cluster.nodes=2", "train.global_batch_size=4", check=False)
    assert "already pending" in again.stderr + again.stdout
    assert "its excluded nodes are now none" in again.stderr + again.stdout
    run.wait_for_end()
    assert "n1" not in run.events("attempt_start")[0]["nodes"]


def test_a_node_that_thaws_does_not_harm_its_successor(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    run = launch(slurm, "thaw", 1, *ENDLESS)
    wait_for_checkpoint(run)
    slurm_cluster.freeze("n1")
    wait_for_checkpoint(run, starts=2)
    slurm_cluster.thaw("n1")
    run.wait(lambda: "idle" in slurm_cluster.states()["n1"], "n1 idle again", 60)
    step = run.step()
    run.wait_for_step(step + 200)
    assert len(run.events("train_start")) == 2 and len(run.events("restart")) == 1, run.describe()


def test_a_lost_node_among_eight_drains_no_healthy_one(slurm: Bench, slurm_cluster: SlurmCluster) -> None:
    run = launch(slurm, "seven", 7, *ENDLESS, "checkpoint.every_steps=10")
    wait_for_checkpoint(run)
    slurm_cluster.kill("n2")
    wait_for_checkpoint(run, starts=2)
    assert [event["reason"] for event in run.events("restart")] == ["node_fail"], run.describe()
    assert list(run.folder.excluded_nodes()) == ["n2"]
    states = slurm_cluster.states()
    assert [name for name, state in states.items() if "drain" in state] == []
    log = (slurm_cluster.dir / "log" / "slurmctld.log").read_text()
    assert "completion process took" not in log, "the others did not wait for the dead one"
