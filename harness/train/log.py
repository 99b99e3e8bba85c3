"""metrics.jsonl and the lines on stdout: one per logged step."""

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.run.files import append_json_line
from harness.run.folder import RunFolder

SUPERSEDED = "superseded_metrics.jsonl"


class StepLog:
    """Writes one object per logged step. Only rank 0 has one."""

    def __init__(self, run: RunFolder, steps: int, log_every: int) -> None:
        self._path = run.metrics_path
        self._steps = steps
        self._every = log_every
        self._width = len(str(steps))
        self._tokens = self._count = 0
        self._seconds = self._data_wait = 0.0
        self._last = time.perf_counter()

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
        skipped: bool,
    ) -> None:
        """Count a step and, where it is one to log, write it. `seconds` and `data_wait` of this step; `tokens` so far."""
        self._tokens += step_tokens
        self._count += 1
        self._seconds += seconds
        self._data_wait += data_wait
        if step % self._every and step != self._steps:
            return
        now = time.perf_counter()
        rate = self._tokens / (now - self._last)
        record = {
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
        if skipped:
            record["skipped"] = True
        self._write(record)
        left = (self._steps - step) * (now - self._last) / self._count
        print(
            f"step {step:>{self._width}}/{self._steps}  loss {loss:.4f}  {rate:,.0f} tokens/s  lr {lr:.2e}  "
            f"grad norm {grad_norm:.3f}  {duration(left)} left{'  SKIPPED: not finite' if skipped else ''}",
            flush=True,
        )
        self._tokens = self._count = 0
        self._seconds = self._data_wait = 0.0
        self._last = now

    def _write(self, record: Mapping[str, Any]) -> None:
        try:
            append_json_line(self._path, dict(record))
        except OSError as error:  # a full disk must not end training
            print(f"could not write step {record['step']} to {self._path}: {error}", flush=True)


def drop_after(run: RunFolder, step: int, attempt: int) -> int:
    """Move lines of steps after `step` to the attempt's folder, so that metrics.jsonl has each step once; how many.

    Half a line left by a kill goes too. Only the end of the file is read, and cut off. Raises OSError.
    """
    try:
        size = run.metrics_path.stat().st_size
    except FileNotFoundError:
        return 0
    block = 1 << 20
    while True:
        start = max(0, size - block)
        with open(run.metrics_path, "rb") as f:
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
        folder = run.attempt_dir(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        _append(folder / SUPERSEDED, dropped)
        os.truncate(run.metrics_path, begin + sum(len(line) for line in lines[:kept]))
    return len(dropped)


def duration(seconds: float) -> str:
    """Seconds in words for people: 42 s, 3 min, 5 h 10 min, 12 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // 1440} d {minutes % 1440 // 60} h"


def _append(path: Path, lines: list[str]) -> None:
    with open(path, "a", encoding="utf-8") as f:
        f.writelines(line + "\n" for line in lines)


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
