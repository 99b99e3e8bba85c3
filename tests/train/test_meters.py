import gc
import os
from pathlib import Path

import pytest

from harness.observe.board import PHASES, Board, RankState, board_path
from harness.train.meters import RATE_WINDOW, GcMeter, PhaseClock, PlannedPause, start_board


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.open_for_write(board_path(tmp_path, 0))


def test_phases_add_up_to_wall_time(board: Board) -> None:
    times = iter([100.0, 101.0, 103.0, 103.5, 104.5, 110.0])
    clock = PhaseClock(board, now=lambda: next(times))
    for phase in ("data_wait", "forward_backward", "comm_wait", "optimizer", "other"):
        clock.switch(phase)
    written = {phase: board.get("phase_seconds", row) for row, phase in enumerate(PHASES)}
    assert written == clock.seconds
    assert written == {
        "other": 1.0, "data_wait": 2.0, "forward_backward": 0.5, "comm_wait": 1.0, "optimizer": 5.5,
        "checkpoint": 0.0, "eval": 0.0,
    }  # fmt: skip
    assert sum(written.values()) == 10.0
    assert (board.get("compute_seconds"), board.get("comm_wait_seconds")) == (6.0, 1.0)


def test_start_is_a_planned_pause_until_a_rate_window_after_the_first_step(board: Board) -> None:
    start_board(board, os.getpid(), 2)
    assert board.get("planned_pause") == 1.0
    assert (board.get("state"), board.get("restart"), board.get("pid")) == (RankState.starting, 2, os.getpid())
    pause = PlannedPause(board)
    for now, expected in ((50.0, 1.0), (50.0 + RATE_WINDOW - 1, 1.0), (50.0 + RATE_WINDOW, 0.0)):
        pause.step_done(now)
        assert board.get("planned_pause") == expected


def test_collections_are_timed_until_closed(board: Board) -> None:
    meter = GcMeter(board)
    gc.collect()
    meter.close()
    counted = sum(board.histogram("gc", 2).counts)
    assert counted >= 1
    gc.collect()
    assert sum(board.histogram("gc", 2).counts) == counted
