"""What a rank writes to its board: where its time goes, its counters, its pauses."""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from harness.observe.board import PHASES, Activity, Board, RankState
from harness.system.processes import started

RATE_WINDOW = 60.0
"""Seconds for which a planned pause is held after its end, so that a rate over this window sees none of it."""


class PhaseClock:
    """Charges the run's wall time to phases, so that they add up to it by construction.

    The device's time within steps is known from its own marks. What lies between two steps goes to what the host did
    meanwhile, as far as the device stood idle for it: waiting for data hidden behind computation costs nothing.
    """

    def __init__(self, board: Board, now: Callable[[], float] = time.perf_counter) -> None:
        self._board = board
        self._now = now
        self._phase = "other"
        self._since = now()
        self._between: dict[str, float] = {}

    def switch(self, phase: str) -> str:
        """From now on the host does `phase`; what it did before."""
        now, before = self._now(), self._phase
        self._between[before] = self._between.get(before, 0.0) + now - self._since
        self._phase, self._since = phase, now
        return before

    def take(self) -> dict[str, float]:
        """Host seconds by phase since the last call."""
        self.switch(self._phase)
        taken, self._between = self._between, {}
        return taken

    def charge(self, seconds: dict[str, float]) -> None:
        """Add `seconds` by phase to the board."""
        for phase, value in seconds.items():
            self._board.add("phase_seconds", value, PHASES.index(phase))
        self._board.add("compute_seconds", seconds.get("forward_backward", 0.0) + seconds.get("optimizer", 0.0))
        self._board.add("comm_wait_seconds", seconds.get("comm_wait", 0.0))


def idle_phases(idle: float, host: dict[str, float]) -> dict[str, float]:
    """Divide `idle` seconds of the device between two steps over what the host did meanwhile, most telling first."""
    left, phases = idle, {}
    for phase in ("checkpoint", "eval", "data_wait"):
        phases[phase] = min(left, host.get(phase, 0.0))
        left -= phases[phase]
    return {**phases, "other": left}


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
    board.begin(Activity.starting)
    board.set("state", RankState.starting)
    board.set("planned_pause", 1.0)
    board.set("pause_ends", 0.0)
    board.set("restart", restart)
    board.set("start_time", time.time())
    board.set("pid", pid)  # last: from here on the agent takes the cells above for this process's
    board.set("pid_started", started(pid) or 0.0)


class PlannedPause:
    """Says on the board when training pauses as planned: at the start, and whenever `during` says so.

    The pause stands until one rate window after the first step that follows it, so that a rate over this window sees none
    of it, and no longer than two windows if no step follows.
    """

    def __init__(self, board: Board) -> None:
        self._board = board
        self._until: float | None = None

    @contextmanager
    def during(self, activity: Activity) -> Iterator[None]:
        """A pause in which the rank does `activity`."""
        self.begin(activity)
        try:
            yield
        finally:
            self._until = None
            self._board.set("pause_ends", time.time() + 2 * RATE_WINDOW)
            self._board.begin(Activity.stepping)

    def begin(self, activity: Activity) -> None:
        """A pause that the run does not come back from, or that `during` ends."""
        self._board.set("pause_ends", 0.0)
        self._board.set("planned_pause", 1.0)
        self._board.begin(activity)

    def step_done(self, now: float) -> None:
        """`now` on a monotonic clock."""
        if self._until is None:
            self._until = now + RATE_WINDOW
            self._board.set("pause_ends", time.time() + RATE_WINDOW)
        elif now >= self._until:
            self._board.set("planned_pause", 0.0)
