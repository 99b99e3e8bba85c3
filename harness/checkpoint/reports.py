"""How the rest of the run learns about saving and loading: the board's cells, the ledger's events, a line on stdout."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from harness.observe.board import SAVE_STAGES, Board
from harness.run.folder import Ledger


@dataclass(frozen=True)
class SaveResult:
    """How one save ended; the same on all ranks but for the times."""

    step: int
    error: str | None
    """Why it failed; None: the checkpoint is complete."""
    fenced: bool
    """A newer attempt of the run exists: this process must stop."""
    seconds: dict[str, float]
    """Of each of SAVE_STAGES, on this rank."""
    size: int
    """Bytes of the whole checkpoint."""
    own_size: int
    """Bytes that this rank wrote."""


@dataclass(frozen=True)
class Reports:
    """Where one rank reports to. Ledger and stdout hear from rank 0 only."""

    board: Board
    ledger: Ledger
    rank: int

    def saved(self, result: SaveResult) -> None:
        """Count a finished save, successful or not."""
        if result.error is not None:
            self.board.add("ckpt_failures_total", 1)
            event = {"reason": result.error}
            self._tell(
                "checkpoint_failed", result.step, f"CHECKPOINT FAILED at step {result.step}: {result.error}", event
            )
            return
        for row, stage in enumerate(SAVE_STAGES):
            self.board.observe("save", result.seconds[stage], row)
        self.board.add("ckpt_bytes_total", result.own_size)
        self.board.set("ckpt_last_success_time", time.time())
        self.board.set("ckpt_last_success_step", result.step)
        total = sum(result.seconds.values())
        line = f"checkpoint of step {result.step}: {result.size / 1e6:,.1f} MB in {total:.2f} s"
        self._tell("checkpoint", result.step, line, {"seconds": round(total, 3), "bytes": result.size})

    def corrupt(self, step: int, reason: str) -> None:
        """A checkpoint was passed over."""
        line = f"WARNING: checkpoint of step {step} is not used: {reason}"
        self._tell("checkpoint_corrupt", step, line, {"reason": reason})

    def restored(self, step: int, size: int, verify: float, read: float) -> None:
        """A checkpoint was loaded; `verify` and `read` in seconds."""
        self.board.observe("restore", read, 0)
        self.board.observe("restore", verify, 1)
        if self.rank == 0:
            print(
                f"restored step {step}: {size / 1e6:,.1f} MB, checked in {verify:.2f} s, read in {read:.2f} s",
                flush=True,
            )

    def _tell(self, event: str, step: int, line: str, fields: Mapping[str, object]) -> None:
        if self.rank == 0:
            print(line, flush=True)
            self.ledger.write(event, step, **fields)
