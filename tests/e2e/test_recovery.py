"""Every way to lose a part of a running job; each time the run goes on by itself, and ends with the very same losses."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.monitor.client import Prometheus
from harness.monitor.endpoints import read_endpoints
from harness.monitor.panels import RUN_OVERVIEW, panel_queries
from tests.conftest import require
from tests.e2e.runs import SLURM, Bench, Run
from tests.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.timeout(420)]

INTERRUPT_AT = 14
"""Between the checkpoints of steps 10 and 20."""


@pytest.fixture(autouse=True)
def _whole_cluster(slurm_cluster: SlurmCluster) -> Iterator[None]:
    yield
    slurm_cluster.repair()


def _start(slurm: Bench, name: str, *overrides: str) -> Run:
    slurm.launch(name, *SLURM, *overrides)
    run = slurm.run(name)
    run.wait_for_step(INTERRUPT_AT)
    return run


def _check_resumed_exactly(run: Run, uninterrupted: dict[int, float], reason: str, attempts: int) -> None:
    """Same losses bit for bit, each step once, nothing lost beyond the last checkpoint, and the ledger says why."""
    run.wait_for_end()
    assert run.losses() == uninterrupted
    first, second = run.events("train_start")[:2]
    assert first["resumed_from"] is None
    saved = [event["step"] for event in run.events("checkpoint") if event["time"] < second["time"]]
    assert second["resumed_from"] == max(saved) >= 10
    assert [event["reason"] for event in run.events("restart")] == [reason], run.describe()
    assert run.folder.attempts() == list(range(attempts))


def _pid(slurm_cluster: SlurmCluster, node: str, part: str) -> int:
    """The process on `node` whose command line holds `part`."""
    found = [pid for pid, command in slurm_cluster.pids(node).items() if part in command and "srun" not in command]
    assert found, f"no {part} on {node}: {slurm_cluster.pids(node)}"
    return found[0]


def _job_id(run: Run) -> str:
    return str(run.folder.record()["job_id"])


def _job_state(slurm: Bench, run: Run) -> str:
    command = ["scontrol", "--oneliner", "show", "job", _job_id(run)]
    shown = subprocess.run(command, env=slurm.env, capture_output=True, text=True, check=True).stdout
    return shown.partition("JobState=")[2].split()[0]


def test_rank_killed(slurm: Bench, slurm_cluster: SlurmCluster, uninterrupted: dict[int, float]) -> None:
    run = _start(slurm, "rank")
    os.kill(_pid(slurm_cluster, "n2", "harness.train"), signal.SIGKILL)
    _check_resumed_exactly(run, uninterrupted, "rank_crash", attempts=1)
    failed = run.events("rank_failed")[0]
    assert (failed["node"], failed["why"]) == ("n2", "was killed by SIGKILL")


def test_agent_killed(slurm: Bench, slurm_cluster: SlurmCluster, uninterrupted: dict[int, float]) -> None:
    run = _start(slurm, "agent")
    os.kill(_pid(slurm_cluster, "n2", "harness.agent "), signal.SIGKILL)
    _check_resumed_exactly(run, uninterrupted, "unknown", attempts=2)
    assert run.folder.excluded_nodes() == {}


def test_head_agent_killed(slurm: Bench, slurm_cluster: SlurmCluster, uninterrupted: dict[int, float]) -> None:
    run = _start(slurm, "head")
    os.kill(_pid(slurm_cluster, "n1", "harness.agent "), signal.SIGKILL)
    _check_resumed_exactly(run, uninterrupted, "unknown", attempts=2)


def test_time_limit(slurm: Bench, uninterrupted: dict[int, float]) -> None:
    """Slurm's own warning, SIGUSR2 to every process of the job: the run saves where it stands, and loses no step."""
    run = _start(slurm, "limit")
    subprocess.run(["scancel", "--signal=USR2", _job_id(run)], env=slurm.env, check=True)
    _check_resumed_exactly(run, uninterrupted, "timeout", attempts=2)
    assert run.events("train_start")[1]["resumed_from"] == run.events("stopped")[0]["step"]
    assert not (run.folder.attempt_dir(0) / "superseded_metrics.jsonl").exists()


def test_requeued_by_hand(slurm: Bench, uninterrupted: dict[int, float]) -> None:
    run = _start(slurm, "requeue")
    subprocess.run(["scontrol", "requeue", _job_id(run)], env=slurm.env, check=True)
    _check_resumed_exactly(run, uninterrupted, "user", attempts=2)


def test_cancelled_stays_cancelled(slurm: Bench) -> None:
    run = _start(slurm, "cancel")
    subprocess.run(["scancel", _job_id(run)], env=slurm.env, check=True)
    run.wait(lambda: bool(run.events("attempt_end")), "the agent's last word", 30)
    run.wait(lambda: _job_state(slurm, run) not in ("RUNNING", "COMPLETING"), "the end of the job", 30)
    assert _job_state(slurm, run) == "CANCELLED"
    assert run.events("restart") == []
    status = subprocess.run(
        [sys.executable, "-m", "harness.status", str(run.folder.path)], env=slurm.env, capture_output=True, text=True
    )
    assert "terminated" in status.stdout


def test_hopeless_run_ends(slurm: Bench) -> None:
    """A learning rate that blows the weights up: starting again can't help, so the job ends and is not requeued."""
    one_node = ("cluster.nodes=1", "train.global_batch_size=4")
    slurm.launch("hopeless", *SLURM, *one_node, "train.nonfinite=stop", "optim.lr=1e30", "optim.clip_grad_norm=0")
    run = slurm.run("hopeless")
    run.wait(lambda: bool(run.events("attempt_end")), "the end of the attempt", 120)
    end = run.events("attempt_end")[-1]
    assert (end["state"], end["reason"]) == ("failed", "nonfinite")
    assert run.events("restart") == []


def test_a_node_that_cannot_read_the_data_is_left_out(
    slurm: Bench, slurm_cluster: SlurmCluster, uninterrupted: dict[int, float], tmp_path: Path
) -> None:
    """One node's mount is empty; the others read, so the run goes on without that node, and says why."""
    slurm_cluster.exec("n2", "mount", "--bind", str(tmp_path), str(slurm.tokens))
    try:
        slurm.launch("unreadable", *SLURM)
        run = slurm.run("unreadable")
        run.wait_for_end()
    finally:
        slurm_cluster.exec("n2", "umount", str(slurm.tokens))
    assert run.losses() == uninterrupted
    first, second = (event["nodes"] for event in run.events("attempt_start"))
    assert "n2" in first and "n2" not in second, run.describe()
    (restart,) = run.events("restart")
    assert restart["reason"] == "storage" and str(slurm.tokens) in restart["why"]
    assert list(run.folder.excluded_nodes()) == ["n2"]
    said = run.events("data_unreadable")
    assert [event["node"] for event in said] == ["n2"] and str(slurm.tokens) in said[0]["why"]


@pytest.mark.prometheus
def test_node_loses_power_under_prometheus(
    slurm: Bench, slurm_cluster: SlurmCluster, uninterrupted: dict[int, float], tmp_path: Path
) -> None:
    """The founding promise: nobody touches anything, the run ends on healthy nodes, and the metrics tell the story."""
    require("prometheus", "promtool")
    command = [
        sys.executable,
        "-m",
        "harness.monitor",
        "up",
        "--runs-dir",
        str(slurm.runs_dir),
        "--port",
        "0",
        "--scrape-interval",
        "1s",
    ]
    monitor = subprocess.Popen(command, env=slurm.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        run = _start(slurm, "power", f"data.stage_to={tmp_path}")  # so that every panel has something to show
        slurm_cluster.kill("n2")
        run.wait(lambda: len(run.events("train_start")) > 1, "training on healthy nodes", 120)
        prometheus = Prometheus(read_endpoints(slurm.runs_dir)["prometheus"])
        run.wait_for_step(36)
        restarts = prometheus.query('max by (reason) (harness_restarts_total{run="power"})')
        counted = {sample.labels["reason"]: sample.value for sample in restarts}
        _check_every_panel(prometheus, "power")
        _check_resumed_exactly(run, uninterrupted, "node_fail", attempts=2)
        assert counted["node_fail"] == 1 and sum(counted.values()) == 1
    finally:
        monitor.send_signal(signal.SIGTERM)
        output = monitor.communicate(timeout=30)[0]
    assert list(run.folder.excluded_nodes()) == ["n2"], output
    assert "n2" not in run.events("attempt_start")[1]["nodes"]
    _check_stays_excluded(slurm, slurm_cluster, run)


def _check_every_panel(prometheus: Prometheus, run_name: str) -> None:
    """Every panel of the dashboard has data for a run on CPUs, but for those that speak of GPUs."""
    empty = [
        f"{title}: {expression}"
        for title, expression, needs_gpu in panel_queries(RUN_OVERVIEW, run_name)
        if not needs_gpu and not prometheus.query(expression)
    ]
    assert not empty, "panels without data:\n" + "\n".join(empty)


def _check_stays_excluded(slurm: Bench, slurm_cluster: SlurmCluster, run: Run) -> None:
    """The lost node comes back healthy; a later job of this run still keeps off it."""
    slurm_cluster.repair()
    slurm.launch("power", *SLURM, "train.steps=44", "schedule.decay_steps=14")
    run.wait(lambda: len(run.events("attempt_start")) == 3, "the third attempt", 60)
    assert "n2" not in run.events("attempt_start")[2]["nodes"]
