"""Hang detection by steps, and what happens to the ranks."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.agent.hang import HangWatch
from harness.observe.board import Board, RankState


@pytest.fixture
def board(tmp_path: Path) -> Board:
    board = Board.open_for_write(tmp_path / "rank-00000.board")
    board.set("state", RankState.training)
    board.set("start_time", 100.0)
    return board


def watch(now: float) -> HangWatch:
    return HangWatch(limit=60, clock=lambda: now)


def test_steps_keep_it_quiet(board: Board) -> None:
    board.set("last_step_time", 1000.0)
    assert not watch(1059).hung([board])
    assert watch(1061).hung([board])


def test_start_up_counts_from_the_start_of_the_rank(board: Board) -> None:
    assert not watch(159).hung([board])
    assert watch(161).hung([board])


def test_finished_ranks_do_not_hang(board: Board) -> None:
    board.set("state", RankState.finished)
    assert not watch(9999).hung([board])
    assert not watch(9999).hung([])


def test_the_stacks_are_printed_before_the_end(board: Board, tmp_path: Path) -> None:
    code = "import faulthandler, signal, time; faulthandler.register(signal.SIGUSR1); print('up', flush=True)\ndef stuck():\n  time.sleep(60)\nstuck()"
    with open(tmp_path / "log", "w") as log:
        rank = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=log)
    assert rank.stdout is not None and rank.stdout.readline()
    time.sleep(0.1)
    board.set("pid", rank.pid)
    assert watch(0).kill([board]) == [rank.pid]
    assert rank.wait(10) == -signal.SIGKILL
    assert "stuck" in (tmp_path / "log").read_text()


def test_a_rank_that_is_gone_already_is_no_error(board: Board) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    board.set("pid", child.pid)
    assert watch(0).kill([board]) == [child.pid]
    assert os.getpid() != child.pid
