"""Notices that ranks no longer finish steps. The heartbeat is the step itself: a thread can beat while training hangs."""

import os
import signal
import time
from collections.abc import Callable

from harness.observe.board import Board, RankState

STACK_SECONDS = 3.0
"""How long ranks get to print their stacks before they are killed."""


class HangWatch:
    """Restarts the node's ranks when none of them has finished a step for `limit` seconds of training."""

    def __init__(self, limit: float, clock: Callable[[], float] = time.time) -> None:
        self._limit, self._clock = limit, clock

    def hung(self, boards: list[Board]) -> bool:
        """Whether every training rank of the node is overdue. Start-up and restoring count from the rank's start."""
        alive = [board for board in boards if board.get("state") in (RankState.restoring, RankState.training)]
        if not alive:
            return False
        newest = max(max(board.get("last_step_time"), board.get("start_time")) for board in alive)
        return self._clock() - newest > self._limit

    def kill(self, boards: list[Board]) -> list[int]:
        """Have every rank print its stacks (SIGUSR1), then kill it; returns the process ids."""
        pids = [int(board.get("pid")) for board in boards if board.get("pid") > 0]
        _signal_all(pids, signal.SIGUSR1)
        time.sleep(STACK_SECONDS)
        _signal_all(pids, signal.SIGKILL)
        return pids


def _signal_all(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
