import gc
import os
import time
from pathlib import Path

import pytest

from harness.observe.board import PHASES, Activity, Board, RankState, board_path
from harness.train.meters import RATE_WINDOW, GcMeter, PhaseClock, PlannedPause, idle_phases, start_board


@pytest.fixture
def board(tmp_path: Path) -> Board:
    return Board.open_for_write(board_path(tmp_path, 0))


def test_host_time_is_charged_to_what_the_host_did() -> None:
    times = iter([100.0, 101.0, 103.0, 103.5, 104.5, 110.0, 110.25, 110.25])
    clock = PhaseClock(None, now=lambda: next(times))  # type: ignore[arg-type]  # writes nothing yet
    assert clock.switch("data_wait") == "other"
    assert clock.switch("checkpoint") == "data_wait"
    assert clock.switch("data_wait") == "checkpoint"
    clock.switch("other")
    assert clock.take() == {"other": 6.5, "data_wait": 3.0, "checkpoint": 0.5}
    assert clock.take() == {"other": 0.25}


def test_charged_phases_are_on_the_board(board: Board) -> None:
    clock = PhaseClock(board)
    for _ in range(2):
        clock.charge({"forward_backward": 2.0, "comm_wait": 0.5, "optimizer": 0.25, "data_wait": 1.0})
    written = {phase: board.get("phase_seconds", row) for row, phase in enumerate(PHASES)}
    expected = {"forward_backward": 4.0, "comm_wait": 1.0, "optimizer": 0.5, "data_wait": 2.0}
    assert written == {**dict.fromkeys(PHASES, 0.0), **expected}
    assert (board.get("compute_seconds"), board.get("comm_wait_seconds")) == (4.5, 1.0)


@pytest.mark.parametrize(
    ("idle", "host", "expected"),
    [
        (0.0, {"data_wait": 3.0}, {"other": 0.0}),  # hidden behind the step before: it cost nothing
        (1.0, {"data_wait": 3.0, "other": 2.0}, {"data_wait": 1.0, "other": 0.0}),
        (5.0, {"checkpoint": 3.0, "eval": 1.5, "data_wait": 9.0}, {"checkpoint": 3.0, "eval": 1.5, "data_wait": 0.5}),
        (5.0, {"data_wait": 1.0, "other": 0.1}, {"data_wait": 1.0, "other": 4.0}),
    ],
)
def test_idle_time_of_the_device_goes_to_what_the_host_did(
    idle: float, host: dict[str, float], expected: dict[str, float]
) -> None:
    found = idle_phases(idle, host)
    assert sum(found.values()) == idle
    assert found == {"checkpoint": 0.0, "eval": 0.0, "data_wait": 0.0, "other": 0.0, **expected}


def test_start_is_a_planned_pause_until_a_rate_window_after_the_first_step(board: Board) -> None:
    start_board(board, os.getpid(), 2)
    assert board.get("planned_pause") == 1.0
    assert (board.get("state"), board.get("restart"), board.get("pid")) == (RankState.starting, 2, os.getpid())
    pause = PlannedPause(board)
    for now, expected in ((50.0, 1.0), (50.0 + RATE_WINDOW - 1, 1.0), (50.0 + RATE_WINDOW, 0.0)):
        pause.step_done(now)
        assert board.get("planned_pause") == expected


def test_a_pause_is_held_until_a_rate_window_after_the_first_step_that_follows(board: Board) -> None:
    start_board(board, os.getpid(), 0)
    pause = PlannedPause(board)
    for now in (0.0, RATE_WINDOW):
        pause.step_done(now)
    assert board.get("planned_pause") == 0.0
    with pause.during(Activity.validating):
        assert (board.get("planned_pause"), board.get("pause_ends")) == (1.0, 0.0)
        assert board.get("activity") == Activity.validating
    assert board.get("activity") == Activity.stepping
    assert RATE_WINDOW < board.get("pause_ends") - time.time() <= 2 * RATE_WINDOW  # should no step follow
    for now, expected in ((500.0, 1.0), (500.0 + RATE_WINDOW - 1, 1.0), (500.0 + RATE_WINDOW, 0.0)):
        pause.step_done(now)
        assert board.get("planned_pause") == expected


def test_a_pause_that_ends_in_an_error_is_over(board: Board) -> None:
    pause = PlannedPause(board)
    with pytest.raises(KeyError), pause.during(Activity.saving):
        raise KeyError
    assert board.get("pause_ends") > time.time() and board.get("activity") == Activity.stepping


def test_collections_are_timed_until_closed(board: Board) -> None:
    meter = GcMeter(board)
    gc.collect()
    meter.close()
    counted = sum(board.histogram("gc", 2).counts)
    assert counted >= 1
    gc.collect()
    assert sum(board.histogram("gc", 2).counts) == counted
