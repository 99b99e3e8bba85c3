"""What a run writes down as it goes, one JSON line each: steps, validations, statistics; and the line on stdout per step.

Lines of steps that a restarted run does again are moved out of the way, so that each step stands in a file once.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.run.files import append_lines
from harness.run.folder import RunFolder
from harness.run.journal import journal
from harness.text import duration_text


class StepLog:
    """Writes one object per logged step to metrics.jsonl, and one line to stdout. Only rank 0 has one."""

    def __init__(self, run: RunFolder, steps: int, log_every: int) -> None:
        self._path = run.metrics_path
        self._steps = steps
        self._every = log_every
        self._width = len(str(steps))
        self._tokens = self._count = 0
        self._seconds = self._data_wait = 0.0
        self._last: float | None = None

    def step_done(
        self,
        step: int,
        *,
        tokens: int,
        step_tokens: int,
        loss: float,
        grad_norm: float,
        lr: float,
        seconds: float,
        data_wait: float,
        skipped: str | None,
        now: float,
    ) -> None:
        """Count a step and, where it is one to log, write it.

        `seconds` and `data_wait` are this step's, `tokens` those so far, `skipped` says why the weights stayed as they were.
        `now` is when the step was done, in seconds on any clock that only goes forward: rates are taken from it.
        """
        if self._last is None:
            self._last = now - seconds
        self._tokens += step_tokens
        self._count += 1
        self._seconds += seconds
        self._data_wait += data_wait
        if step % self._every and step != self._steps:
            return
        elapsed = max(now - self._last, 1e-9)
        rate = self._tokens / elapsed
        record: dict[str, Any] = {
            "step": step,
            "tokens": tokens,
            "loss": _finite(loss),
            "grad_norm": _finite(grad_norm),
            "lr": lr,
            "step_seconds": self._seconds / self._count,
            "tokens_per_second": rate,
            "data_wait_seconds": self._data_wait / self._count,
            "time": time.time(),
        }
        if skipped is not None:
            record["skipped"] = skipped
        journal(self._path).write(record)
        left = (self._steps - step) * elapsed / self._count
        print(
            f"step {step:>{self._width}}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  lr {lr:.2e}  "
            f"grad norm {grad_norm:.3f}  {duration_text(left)} left{f'  SKIPPED: {skipped}' if skipped else ''}",
            flush=True,
        )
        self._tokens = self._count = 0
        self._seconds = self._data_wait = 0.0
        self._last = now


def write_validation(run: RunFolder, step: int, *, tokens: int, loss: float, seconds: float) -> None:
    """Append a validation after `step` steps and `tokens` tokens to validation.jsonl: its mean loss and how long it took.

    Rank 0 only."""
    facts = {"tokens": tokens, "loss": _finite(loss), "seconds": seconds, "time": time.time()}
    journal(run.validation_path).write({"step": step, **facts})


def write_stats(run: RunFolder, step: int, stats: Mapping[str, float]) -> None:
    """Append `stats` (name -> figure) of a step to stats.jsonl. Rank 0 only."""
    figures = {name: _finite(value) for name, value in stats.items()}
    journal(run.stats_path).write({"step": step, **figures, "time": time.time()})


def drop_after(path: Path, step: int, folder: Path) -> int:
    """Move the lines of steps after `step` from the end of `path` to superseded_NAME in `folder`; how many.

    Half a line left by a kill goes too. Only the end of the file is read, and cut off. Raises OSError.
    """
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return 0
    block = 1 << 20
    while True:
        start = max(0, size - block)
        with open(path, "rb") as f:
            f.seek(start)
            if start:
                f.readline()  # the rest of a line that began before
            begin, lines = f.tell(), f.readlines()
        if start == 0 or any(_step_of(line) <= step for line in lines):
            break
        block *= 4
    kept = len(lines)
    while kept and _step_of(lines[kept - 1]) > step:
        kept -= 1
    dropped = [line.decode(errors="replace").rstrip("\n") for line in lines[kept:]]
    if dropped:
        folder.mkdir(parents=True, exist_ok=True)
        append_lines(folder / f"superseded_{path.name}", "".join(line + "\n" for line in dropped).encode())
        os.truncate(path, begin + sum(len(line) for line in lines[:kept]))
    return len(dropped)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
