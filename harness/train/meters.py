"""What a rank writes to its board: where its time goes, its counters, its pauses."""

import gc
import time
from collections.abc import Callable
from typing import Any

from harness.observe.board import PHASES, Board, RankState

RATE_WINDOW = 60.0
"""Seconds for which the start stays a planned pause after its end, so that a rate over this window sees none of it."""


class PhaseClock:
    """Charges wall time to one phase at a time, so that the phases add up to it by construction."""

    def __init__(self, board: Board, now: Callable[[], float] = time.perf_counter) -> None:
        self._board = board
        self._now = now
        self._phase = "other"
        self._since = now()
        self.seconds = dict.fromkeys(PHASES, 0.0)
        """Time charged so far, by phase."""

    def switch(self, phase: str) -> str:
        """From now on time goes to `phase`; the phase before."""
        now, before = self._now(), self._phase
        self.seconds[before] += now - self._since
        self._board.add("phase_seconds", now - self._since, PHASES.index(before))
        if before in ("forward_backward", "optimizer"):
            self._board.add("compute_seconds", now - self._since)
        elif before == "comm_wait":
            self._board.add("comm_wait_seconds", now - self._since)
        self._phase, self._since = phase, now
        return before


class GcMeter:
    """Times Python's garbage collections into the board's histogram."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._started = 0.0
        gc.callbacks.append(self._called)

    def close(self) -> None:
        gc.callbacks.remove(self._called)

    def _called(self, phase: str, info: dict[str, Any]) -> None:
        if phase == "start":
            self._started = time.perf_counter()
        else:
            self._board.observe("gc", time.perf_counter() - self._started, min(info["generation"], 2))


def start_board(board: Board, pid: int, restart: int) -> None:
    """Say that this process has taken over the board."""
    board.set("state", RankState.starting)
    board.set("planned_pause", 1.0)
    board.set("pid", pid)
    board.set("restart", restart)
    board.set("start_time", time.time())


class PlannedPause:
    """Holds the start-up pause until one rate window after the first step."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._until: float | None = None

    def step_done(self, now: float) -> None:
        """`now` on a monotonic clock."""
        if self._until is None:
            self._until = now + RATE_WINDOW
        elif now >= self._until:
            self._board.set("planned_pause", 0.0)
