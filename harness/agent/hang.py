"""Notices that ranks no longer get any further. The heartbeat is progress itself: a thread can beat while training hangs."""

import contextlib
import signal
import time
from collections.abc import Callable

from harness.observe.board import Activity, Board
from harness.system.processes import Process

STACK_SECONDS = 3.0
"""How long ranks get to print their stacks, and to show that they do get further, before they are killed."""
BRISK = frozenset({Activity.stepping, Activity.waiting_for_data, Activity.validating})
"""What shows progress every few seconds. Everything else takes long by nature."""
TEXT = {
    Activity.starting: "starting",
    Activity.restoring: "restoring",
    Activity.compiling: "in the first step or batch, which compiles",
    Activity.waiting_for_data: "waiting for data",
    Activity.stepping: "in a step",
    Activity.validating: "validating",
    Activity.saving: "saving a checkpoint",
    Activity.recording: "writing a profile",
    Activity.ending: "ending",
}


class HangWatch:
    """Says when all of a node's ranks hang: none has shown progress for as long as what it does may take."""

    def __init__(self, limit: float, planned_limit: float, clock: Callable[[], float] = time.time) -> None:
        """Seconds: `limit` for what is `BRISK` (cluster.hang_seconds), `planned_limit` for everything else."""
        self._limit, self._planned_limit, self._clock = limit, max(limit, planned_limit), clock
        self._killed: set[Process] = set()

    def hung(self, boards: list[Board]) -> bool:
        """Whether the node has ranks at work and all of them are overdue. Boards of ended processes do not count."""
        working = self._working(boards)
        return bool(working) and all(self._silence(board) > self._limit_of(board) for board in working)

    def why(self, boards: list[Board]) -> str:
        """What the ranks of a hung node were at, for people."""
        longest = max(self._working(boards), key=self._silence)
        activity = _activity(longest)
        key = "cluster.hang_seconds" if activity in BRISK else "cluster.planned_hang_seconds"
        doing = ", ".join(sorted({TEXT[_activity(board)] for board in self._working(boards)}))
        return f"no progress for {self._limit_of(longest):.0f} s ({key}); ranks are {doing}"

    def print_stacks(self, boards: list[Board]) -> None:
        """Have every rank print its stacks (SIGUSR1), and give it a moment for that."""
        for board in self._working(boards):
            _send(board.process, signal.SIGUSR1)
        time.sleep(STACK_SECONDS)

    def kill(self, boards: list[Board]) -> list[int]:
        """Kill the ranks at work; returns their process ids. They never count again, even if they can't die yet."""
        doomed = [board.process for board in self._working(boards)]
        self._killed.update(doomed)
        return [process.pid for process in doomed if _send(process, signal.SIGKILL)]

    def _working(self, boards: list[Board]) -> list[Board]:
        # ranks that have finished too, until they are gone: parting from the others may hang as well
        return [board for board in boards if board.process not in self._killed and board.process.alive]

    def _silence(self, board: Board) -> float:
        return self._clock() - board.get("progress_time")

    def _limit_of(self, board: Board) -> float:
        return self._limit if _activity(board) in BRISK else self._planned_limit


def _activity(board: Board) -> Activity:
    return Activity(int(board.get("activity")))


def _send(process: Process, number: signal.Signals) -> bool:
    with contextlib.suppress(PermissionError):
        return process.send(number)
    return False
