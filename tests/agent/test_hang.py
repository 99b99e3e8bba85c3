"""Hang detection by progress, and what happens to the ranks."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import harness.agent.hang as hang_module
from harness.agent.hang import BRISK, HangWatch
from harness.observe.board import Activity, Board, RankState
from harness.system.processes import started
from harness.train.meters import start_board

RANK = """
import faulthandler, signal, time
faulthandler.register(signal.SIGUSR1)
print('up', flush=True)
def stuck():
    time.sleep(600)
stuck()
"""


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hang_module, "STACK_SECONDS", 0.2)


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return make_board(tmp_path, 0)


@pytest.fixture
def rank(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", RANK], stdout=subprocess.PIPE, stderr=log)
    assert process.stdout is not None and process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def make_board(folder: Path, rank: int) -> Board:
    """Of a rank that trains, in this process, and was last seen to get further at 1000."""
    board = Board.open_for_write(folder / f"rank-{rank:05d}.board")
    start_board(board, os.getpid(), 0)
    board.set("state", RankState.training)
    at(board, Activity.stepping)
    return board


def at(board: Board, activity: Activity, since: float = 1000.0) -> None:
    board.begin(activity)
    board.set("activity_since", since)
    board.set("progress_time", since)


def watch(now: float) -> HangWatch:
    return HangWatch(60, 600, clock=lambda: now)


@pytest.mark.parametrize("activity", Activity)
def test_each_activity_has_its_limit(board: Board, activity: Activity) -> None:
    at(board, activity)
    limit = 60 if activity in BRISK else 600
    assert not watch(1000 + limit).hung([board])
    assert watch(1001 + limit).hung([board])
    why = watch(1001 + limit).why([board])
    assert f"no progress for {limit} s (cluster.{'' if activity in BRISK else 'planned_'}hang_seconds)" in why


def test_what_shows_progress_all_the_time_has_the_short_limit() -> None:
    assert {Activity.stepping, Activity.waiting_for_data, Activity.validating} == BRISK


def test_progress_within_an_activity_keeps_it_quiet(board: Board) -> None:
    at(board, Activity.validating)
    board.progress()
    assert not watch(time.time() + 59).hung([board])
    assert watch(time.time() + 61).hung([board])


def test_the_planned_limit_is_never_the_shorter_one(board: Board) -> None:
    at(board, Activity.saving)
    assert not HangWatch(3600, 600, clock=lambda: 4000.0).hung([board])


def test_a_node_hangs_only_if_all_its_ranks_do(board: Board, tmp_path: Path) -> None:
    other = make_board(tmp_path, 1)
    assert watch(1061).hung([board, other])
    at(other, Activity.recording)  # the others wait for it
    assert not watch(1061).hung([board, other])
    assert watch(1601).hung([board, other])


@pytest.mark.parametrize("state", [RankState.starting, RankState.restoring])
def test_a_start_that_hangs_is_found(board: Board, state: RankState) -> None:
    board.set("state", state)
    at(board, Activity.starting)
    assert not watch(1599).hung([board])
    assert watch(1601).hung([board])


def test_a_rank_that_has_finished_and_does_not_exit_is_found(board: Board) -> None:
    board.set("state", RankState.finished)
    at(board, Activity.ending)
    assert not watch(1599).hung([board])
    assert watch(1601).hung([board])


def test_ranks_that_have_exited_do_not_hang(board: Board) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    board.set("pid", child.pid)
    assert not watch(9999).hung([board])
    assert not watch(9999).hung([])


def test_a_board_of_a_dead_rank_is_forgotten_even_if_its_id_is_used_again(
    board: Board, rank: "subprocess.Popen[bytes]"
) -> None:
    board.set("pid", rank.pid)
    board.set("pid_started", (started(rank.pid) or 0) - 1)
    ours = watch(9999)
    assert not ours.hung([board])
    assert ours.kill([board]) == [] and rank.poll() is None


def test_the_stacks_are_printed_and_the_killed_never_count_again(
    board: Board, rank: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    board.set("pid", rank.pid)
    board.set("pid_started", started(rank.pid) or 0)
    ours = watch(9999)
    assert ours.hung([board])
    while "stuck" not in (tmp_path / "log").read_text():  # the first signal may come before it is stuck
        ours.print_stacks([board])
    assert rank.poll() is None
    os.kill(rank.pid, signal.SIGSTOP)  # killed or not, it is not signalled twice
    assert ours.kill([board]) == [rank.pid]
    assert not ours.hung([board]) and ours.kill([board]) == []
    assert rank.wait(10) == -signal.SIGKILL
