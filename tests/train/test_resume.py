"""Whatever ends the processes, the run that goes on must equal the one that was never interrupted."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.observe.board import PHASES, Board, RankState, board_path
from harness.run import exit_codes as codes
from harness.run.files import read_json_lines
from harness.run.folder import RunFolder
from tests.ranks import exit_codes, free_port, start_trainers
from tests.tiny import losses, tiny_run
from tests.waiting import wait_for

STEPS = 12


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Losses of two ranks that ran from start to end."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = tiny_run(folder, data=data, steps=STEPS)
    assert exit_codes(start_trainers(run.path, 2, folder)) == [0, 0]
    return losses(run)


def events(run: RunFolder, name: str) -> list[int]:
    return [event["step"] for event in run.events() if event["event"] == name]


@pytest.mark.parametrize("in_background", [False, True], ids=["sync", "async"])
def test_losses_after_a_killed_rank_equal_the_uninterrupted_ones(
    in_background: bool, data: Path, uninterrupted: dict[int, float], tmp_path: Path
) -> None:
    run = tiny_run(tmp_path, data=data, steps=STEPS, checkpoint__async_save=in_background)
    ranks = start_trainers(run.path, 2, tmp_path, attempt=0)
    # with a saved step and at least one more that will be lost
    wait_for(
        lambda: events(run, "checkpoint") and max(losses(run), default=0) > events(run, "checkpoint")[-1],
        "a step after a checkpoint",
        every=0.002,
    )
    assert ranks[1].pid is not None
    os.kill(ranks[1].pid, signal.SIGKILL)
    first = exit_codes(ranks)
    assert first[1] == -signal.SIGKILL and first[0] not in (0, *codes.NOT_RETRIED)
    lost = max(losses(run))
    run.attempt_dir(1).mkdir()
    again = start_trainers(run.path, 2, tmp_path, attempt=1)
    assert exit_codes(again) == [0, 0], (tmp_path / "rank-0.log").read_text()
    assert losses(run) == uninterrupted  # bit for bit, each step once
    resumed = [event for event in run.events() if event["event"] == "train_start"][-1]["resumed_from"]
    assert 0 < resumed < lost and resumed in events(run, "checkpoint")
    moved = list(read_json_lines(run.attempt_dir(1) / "superseded_metrics.jsonl"))
    assert [line["step"] for line in moved] == list(range(resumed + 1, lost + 1))
    assert all(line["loss"] == uninterrupted[line["step"]] for line in moved)
    assert events(run, "finished") == [STEPS]


def test_two_ranks_go_on_as_one(data: Path, tmp_path: Path) -> None:
    constant = {"schedule__decay_steps": 0}
    whole = tiny_run(tmp_path, name="whole", data=data, steps=STEPS, **constant)
    assert exit_codes(start_trainers(whole.path, 1, tmp_path)) == [0]
    run = tiny_run(tmp_path, data=data, steps=6, **constant)
    assert exit_codes(start_trainers(run.path, 2, tmp_path)) == [0, 0]
    config = run.load_config()
    config.train.steps = STEPS
    run.save_config(config)
    assert exit_codes(start_trainers(run.path, 1, tmp_path)) == [0]
    found = losses(run)
    assert list(found) == list(range(1, STEPS + 1))
    # the same rates throughout, so the same losses but for the order of additions
    assert list(found.values()) == pytest.approx(list(losses(whole).values()), rel=1e-4)
    starts = [event for event in run.events() if event["event"] == "train_start"]
    assert [(event["world_size"], event["resumed_from"]) for event in starts] == [(2, None), (1, 6)]


def test_stop_request_saves_and_the_rest_follows(data: Path, uninterrupted: dict[int, float], tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=STEPS, checkpoint__every_steps=100)
    ranks = start_trainers(run.path, 2, tmp_path)
    wait_for(lambda: len(losses(run)) >= 2, "two steps", every=0.002)
    for rank in ranks:
        assert rank.pid is not None
        os.kill(rank.pid, signal.SIGUSR2)  # Slurm sends it to everybody; only the agent acts on it
    Board.open_for_read(board_path(tmp_path, 1)).set("stop_request", 1.0)  # one rank is enough
    assert exit_codes(ranks) == [0, 0]
    (stopped,) = events(run, "stopped")
    assert 2 <= stopped < STEPS and events(run, "checkpoint") == [stopped]
    boards = [Board.open_for_read(board_path(tmp_path, rank)) for rank in range(2)]
    assert {board.get("state") for board in boards} == {RankState.stopped}
    boards[1].set("stop_request", 0.0)
    assert exit_codes(start_trainers(run.path, 2, tmp_path)) == [0, 0]
    assert losses(run) == uninterrupted
    assert {board.get("state") for board in boards} == {RankState.finished}


def test_under_torchrun_and_what_the_boards_say(data: Path, uninterrupted: dict[int, float], tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=STEPS)
    environment = {**os.environ, "HARNESS_BOARD_DIR": str(tmp_path / "boards"), "OMP_NUM_THREADS": "1"}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--master-port",
        str(free_port()),
    ]
    command = [*torchrun, "-m", "harness.train", str(run.path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert losses(run) == uninterrupted
    assert done.stdout.count("tokens/s") == STEPS  # one line per step, from one rank
    tokens_per_step = 8 * 64
    for rank in range(2):
        board = Board.open_for_read(board_path(tmp_path / "boards", rank))
        assert (board.get("step"), board.get("steps_total")) == (STEPS, STEPS)
        assert board.get("tokens_total") == (STEPS * tokens_per_step if rank == 0 else 0)
        assert sum(board.histogram("step").counts) == STEPS
        assert board.get("loss") == uninterrupted[STEPS] and board.get("grad_norm") > 0
        assert board.get("ckpt_last_success_step") == STEPS and board.get("planned_pause") == 1.0
        assert board.get("expected_tokens_per_second") == pytest.approx(
            tokens_per_step / board.get("expected_step_seconds")
        )
        phases = {phase: board.get("phase_seconds", row) for row, phase in enumerate(PHASES)}
        assert all(phases[phase] > 0 for phase in PHASES if phase != "eval"), phases
        assert board.get("last_step_time") - board.get("start_time") <= sum(phases.values()) + 1.0
        assert [key.source for key in board.read_keys()] == ["web"]
    assert run.calibration_path.exists()


def test_a_finished_run_has_nothing_left_to_do(data: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=2)
    for _ in range(2):
        assert exit_codes(start_trainers(run.path, 1, tmp_path)) == [0]
    assert len(losses(run)) == 2 and events(run, "checkpoint") == [2]
