"""When ranks have died: whether they start again inside the job, and what the ledger says of it."""

import contextlib
import signal
import time
from pathlib import Path
from typing import Any

from harness.observe.board import Board
from harness.recovery.budget import budget
from harness.recovery.ladder import Act, Decision, Facts, Moment, decide
from harness.run.exit_codes import NOT_RETRIED
from harness.run.folder import Ledger, RunFolder


class RestartPolicy:
    """Records which rank failed, and ends the run if starting again can't help. One per node; the head's counts restarts."""

    def __init__(self, run: RunFolder, ledger: Ledger, boards: Path, head: bool, limit: int) -> None:
        self._run, self._ledger, self._boards, self._head, self._limit = run, ledger, boards, head, limit
        self._failure = ""
        self._due: dict[str, Any] = {}
        self.exit_code = 0
        """Not 0: ranks are not started again, and the launcher ends with it."""

    def failed(self, exit_codes: dict[int, int]) -> None:
        """Ranks of this node died with these exit codes (negative: a signal's number)."""
        step = self._last_step()
        for rank, code in sorted(exit_codes.items()):
            self._ledger.write("rank_failed", step=step, rank=rank, exit_code=code, why=describe_exit(code))
            self._failure = f"rank {rank} {describe_exit(code)}"
            print(f"{self._failure} after step {step}", flush=True)
        fatal = sorted(set(exit_codes.values()) & NOT_RETRIED)
        self._decide(fatal[0] if fatal else None)

    def restarting(self) -> float:
        """All ranks are about to start again, here or because another node's died; returns the seconds to wait before.

        Sets `exit_code` instead if the run gives up.
        """
        decision = self._decide(None)
        if self.exit_code:
            return 0.0
        self._due = self._restart()
        if decision.wait_seconds:
            self._due["wait_seconds"] = decision.wait_seconds
        with contextlib.suppress(OSError):
            (self._boards / "hang").unlink(missing_ok=True)
        self._failure = ""
        print(f"restarting the ranks at {time.strftime('%H:%M:%S')}", flush=True)
        return decision.wait_seconds

    def restarted(self) -> None:
        """All nodes have met again and the ranks start. Recorded only now: if a node is lost, its ranks' failure comes first
        and the end of the job second, and the two are one restart, the job's."""
        if self._head:
            self._ledger.write(**self._due)

    def catch_up(self) -> None:
        """Record what could not be recorded so far; costs nothing otherwise."""
        self._ledger.catch_up()

    def _decide(self, fatal_exit: int | None) -> Decision:
        # on a full disk restarts count as well
        events = [*self._events(), *self._ledger.unwritten(), self._restart()] if self._head else []
        facts = Facts(
            Moment.ranks_failed, self._limit, budget(events), self._reason(), self._failure, fatal_exit=fatal_exit
        )
        decision = decide(facts)
        if decision.act is Act.give_up and not self.exit_code:
            self._ledger.write("gave_up", step=self._last_step(), why=decision.why)
            print(f"giving up: {decision.why}", flush=True)
        self.exit_code = self.exit_code or decision.exit_code
        return decision

    def _events(self) -> list[dict[str, Any]]:
        """None on a mount that is away: an old count must not end the run now."""
        with contextlib.suppress(OSError):
            return self._run.events()
        return []

    def _restart(self) -> dict[str, Any]:
        """The ledger's line for the restart that is due."""
        return {"event": "restart", "step": self._last_step(), "reason": self._reason()}

    def _reason(self) -> str:
        return "hang" if (self._boards / "hang").exists() else "rank_crash"

    def _last_step(self) -> int:
        steps = [0]
        for path in self._boards.glob("rank-*.board"):
            try:
                steps.append(int(Board.open_for_read(path).get("step")))
            except (OSError, ValueError):
                continue
        return max(steps)


def describe_exit(code: int) -> str:
    """`was killed by SIGKILL` or `exited with status 1`."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"
