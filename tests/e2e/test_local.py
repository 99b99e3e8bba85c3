"""The same code path on this machine, without Slurm: follow, a hang, a taken port, a second launch."""

import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkpoint.folders import complete_steps
from harness.observe.board import Board
from harness.run.attempt import read_outcome
from tests.e2e.runs import Bench, Run
from tests.filling import full_disk

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

TWO_RANKS = (
    "cluster=local",
    "cluster.ranks_per_node=2",
    "train.global_batch_size=8",
    "train.steps=24",
    "schedule.decay_steps=4",
)


@pytest.fixture(scope="module")
def undisturbed(local: Bench) -> dict[int, float]:
    """Loss by step of a run followed to its end."""
    result = local.launch("undisturbed", *TWO_RANKS, "follow=true")
    assert "step 24/24" in result.stdout and "run undisturbed finished: all 24 steps are done" in result.stdout
    return local.run("undisturbed").losses()


def _board_of(run: Run) -> Board:
    """That of rank 0, in the folder of the run's agent, which its name says by a digest of the run's path."""
    digest = hashlib.blake2b(str(run.folder.path.resolve()).encode(), digest_size=6).hexdigest()
    return Board.open_for_read(next(Path("/dev/shm").glob(f"harness-*-{digest}-*/rank-00000.board")))


def _rank_pids(run: Run) -> list[int]:
    listed = subprocess.run(["pgrep", "-f", f"harness.train {run.folder.path}$"], capture_output=True, text=True)
    return [int(pid) for pid in listed.stdout.split()]


def test_the_run_folder_holds_everything(local: Bench, undisturbed: dict[int, float]) -> None:
    folder = local.run("undisturbed").folder
    assert sorted(undisturbed) == list(range(1, 25))
    assert undisturbed[24] < undisturbed[1] - 0.3
    for name in ("config.yaml", "plan.json", "run.json", "events.jsonl", "metrics.jsonl", "attempts/000/outcome.json"):
        assert (folder.path / name).is_file(), name
    assert {"run_id", "job_id", "git_commit", "versions", "config_hash"} <= set(folder.record())
    assert (folder.checkpoints_dir / "latest").read_text().strip() == "step-00000024"
    events = [event["event"] for event in folder.events()]
    assert events[:3] == ["submitted", "attempt_start", "agent_start"] and events[-2:] == ["finished", "attempt_end"]


def test_launching_it_again_says_that_it_is_done(local: Bench, undisturbed: dict[int, float]) -> None:
    assert "has finished all 24 steps" in local.launch("undisturbed", *TWO_RANKS).stdout


def test_status_of_a_finished_run(local: Bench, undisturbed: dict[int, float]) -> None:
    command = [sys.executable, "-m", "harness.status", "undisturbed", "--runs-dir", str(local.runs_dir)]
    screen = subprocess.run(command, env=local.env, capture_output=True, text=True, check=True).stdout
    assert "finished" in screen and "24 of 24 (100.0%)" in screen and "step 24" in screen


def test_a_hang_is_broken_and_the_losses_stay_the_same(local: Bench, undisturbed: dict[int, float]) -> None:
    """One rank stops in its tracks; the other waits for it in a collective, where no signal handler runs."""
    local.launch("hang", *TWO_RANKS, "cluster.hang_seconds=12")
    run = local.run("hang")
    run.wait_for_step(13)
    os.kill(_rank_pids(run)[0], signal.SIGSTOP)
    run.wait_for_end()
    assert run.losses() == undisturbed
    assert [event["reason"] for event in run.events("restart")] == ["hang"]
    log = (run.folder.attempt_dir(0) / f"{socket.gethostname()}.log").read_text()
    assert "stacks of all ranks follow" in log and 'File "' in log


def test_a_full_disk_costs_no_step_and_no_line(local: Bench, undisturbed: dict[int, float], tmp_path: Path) -> None:
    """Ledger, metrics, checkpoints and the log all lie on it."""
    with full_disk(tmp_path / "runs", kilobytes=100_000) as disk:
        bench = Bench(disk.folder, local.tokens, local.env)
        bench.launch("full", *TWO_RANKS)
        run = bench.run("full")
        run.wait(lambda: bool(run.events("checkpoint")), "the first checkpoint", 120)
        disk.fill()
        run.wait(lambda: _board_of(run).get("lines_waiting") >= 5, "lines that wait", 60)
        screen = subprocess.run(
            [sys.executable, "-m", "harness.status", "full", "--runs-dir", str(disk.folder)],
            env=local.env, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "FULL (0 B free)" in screen and "running" in screen
        disk.free()
        run.wait_for_end()
        assert run.losses() == undisturbed
        assert run.events("restart") == [] and complete_steps(run.folder.checkpoints_dir)[0] == 24
        gap = next(event for event in run.events("disk_full") if event["file"] == "metrics.jsonl")
        assert gap["late"] >= 5 and gap["lost"] == 0 and gap["since"] < gap["until"]
        assert read_outcome(run.folder, 0).state == "finished"  # type: ignore[union-attr]
        log = (run.folder.attempt_dir(0) / f"{socket.gethostname()}.log").read_text()
        assert "can be written again" in log and "finished: all 24 steps are done" in log


def test_a_second_launch_while_it_runs_is_refused(local: Bench, undisturbed: dict[int, float]) -> None:
    """And a taken metrics port costs the port, not the run."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        local.launch("twice", *TWO_RANKS, f"monitor.port={port}")
        again = local.launch("twice", *TWO_RANKS, check=False)
        assert again.returncode == 2 and "already running as job" in again.stderr
        run = local.run("twice")
        run.wait_for_end()
    assert run.losses() == undisturbed
    log = (run.folder.attempt_dir(0) / f"{socket.gethostname()}.log").read_text()
    assert f"monitor.port={port}" in log and "using a free port instead" in log


def test_nothing_is_left_behind(local: Bench, undisturbed: dict[int, float]) -> None:
    run = local.run("undisturbed")
    assert _rank_pids(run) == []
    assert not list((local.runs_dir / ".targets").glob("undisturbed.*"))
    boards = [path for path in Path("/dev/shm").glob("harness-*/*.board") if "undisturbed" in str(path)]
    assert boards == []


def test_a_truncated_token_file_is_named_before_anything_starts(local: Bench, tmp_path: Path) -> None:
    for path in local.tokens.glob("*.ds*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    victim = next(tmp_path.glob("*.ds"))
    with open(victim, "rb+") as f:
        f.truncate(victim.stat().st_size // 2 // 2 * 2)
    result = local.launch("truncated", *TWO_RANKS, f"data.sources.demo.path={tmp_path}", check=False)
    assert result.returncode == 2
    assert victim.name in result.stderr and "data.sources.demo.path" in result.stderr
    assert not local.run("truncated").folder.attempts()
