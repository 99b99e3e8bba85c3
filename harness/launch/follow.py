"""Prints what a run does, as it does it, until it ends. Leaving never touches the run."""

import json
import math
import time
from typing import Any

from harness.cluster import submit
from harness.config.schema import RootConfig
from harness.run.attempt import ending_text, read_outcome
from harness.run.folder import RunFolder
from harness.slurm import SlurmError
from harness.text import bytes_text, duration_text

POLL_SECONDS = 0.5
STATE_SECONDS = 3.0
NEWEST_LINES = 500
"""Logged steps looked at in each poll; no run logs more in half a second."""
QUIET_EVENTS = frozenset({"submitted", "agent_start"})


def follow(config: RootConfig, run: RunFolder, job_id: str, show_from: float) -> int:
    """Print steps and events that are newer than `show_from` (Unix time). Returns 0 where the run finished, else 1."""
    printer = _Printer(run, config.train.steps, show_from)
    checked = 0.0
    state: str | None = "SUBMITTED"
    while True:
        if time.monotonic() - checked > STATE_SECONDS or _outcome_state(run, show_from):
            state = _state(run, config, job_id, state)
            checked = time.monotonic()
        printer.update(state)
        if state is None:
            return _say_end(run, show_from)
        time.sleep(POLL_SECONDS)


def _state(run: RunFolder, config: RootConfig, job_id: str, before: str | None) -> str | None:
    """The job's state, or the one before while Slurm does not answer: the run goes on all the same."""
    try:
        return submit.is_active(run, config.cluster.kind, job_id)
    except SlurmError as error:
        print(f"going on without an answer from Slurm: {error}", flush=True)
        return before


class _Printer:
    """Remembers what has been shown."""

    def __init__(self, run: RunFolder, steps: int, show_from: float) -> None:
        self._run, self._steps, self._shown_until = run, steps, show_from
        self._state: str | None = None

    def update(self, state: str | None) -> None:
        if state and state != self._state:
            print(f"job is {state.lower()}", flush=True)
        self._state = state
        steps, events = self._run.last_metrics(NEWEST_LINES), self._run.events()
        news = [(when(record), step_line(record, self._steps)) for record in steps]
        news += [(when(record), validation_line(record)) for record in self._run.validations()]
        news += [(when(record), event_line(record)) for record in events if record["event"] not in QUIET_EVENTS]
        for moment, line in sorted(news):
            if moment > self._shown_until:
                print(line, flush=True)
        self._shown_until = max([self._shown_until, *(moment for moment, _ in news)])


def when(record: dict[str, Any]) -> float:
    """The record's Unix time; 0: it says none, as in a file that somebody has edited."""
    return float(record.get("time") or 0.0)


def step_line(record: dict[str, Any], steps: int) -> str:
    """`step 20/120  loss 5.321  4,012 tokens/s  lr 3.0e-03  1.02 s  1 min 42 s left`."""
    names = ("loss", "tokens_per_second", "grad_norm", "lr", "step_seconds")
    loss, speed, grad_norm, lr, seconds = (_number(record.get(name)) for name in names)
    skipped = f"  SKIPPED: {record['skipped']}" if record.get("skipped") else ""
    return (
        f"step {record['step']:,}/{steps:,}  loss {loss:.4f}  {speed:,.0f} tokens/s  "
        f"grad norm {grad_norm:.2f}  lr {lr:.1e}  {seconds:.2f} s/step  "
        f"{duration_text((steps - record['step']) * seconds)} left{skipped}"
    )


def validation_line(record: dict[str, Any]) -> str:
    """`step 20: validation loss 5.1234 (1.3 s)`."""
    return f"step {record['step']:,}: validation loss {_number(record['loss']):.4f} ({_number(record.get('seconds')):.1f} s)"


def event_line(record: dict[str, Any]) -> str:
    """`14:02:11 restart: rank_crash at step 40 on n1`."""
    clock = time.strftime("%H:%M:%S", time.localtime(record["time"]))
    # what happened to a node is recorded by another
    subject = record.get("lost") or record.get("readmitted")
    beginning = f"{clock} {record['event'].replace('_', ' ')}{f' {subject}' if subject else ''}"
    try:
        return _event_text(record, beginning, of_node=not subject)
    except (TypeError, ValueError, AttributeError, OverflowError):  # a line that somebody has edited
        return f"{beginning} {json.dumps(record)}"


def _event_text(record: dict[str, Any], beginning: str, of_node: bool) -> str:
    parts = [beginning]
    if record.get("reason"):
        parts.append(f"({record['reason']})")
    if record.get("step") is not None:
        parts.append(f"at step {record['step']:,}")
    if record.get("node") and of_node:
        parts.append(f"on {record['node']}")
    if record.get("bytes") is not None:
        parts.append(bytes_text(record["bytes"]))
    if record.get("seconds") is not None:
        parts.append(f"in {record['seconds']:.2f} s")
    if record.get("peak_memory_bytes") is not None:
        parts.append(f"with {bytes_text(record['peak_memory_bytes'])} of GPU memory")
    if record.get("loss") is not None:
        parts.append(f"with loss {_number(record['loss']):.4f}, grad norm {_number(record.get('grad_norm')):.2f}")
    why = [record["why"]] if record.get("why") else []
    why += [f"{key}: {before} -> {after}" for key, (before, after) in record.get("changes", {}).items()]
    return " ".join([*parts, f"- {', '.join(why)}"] if why else parts)


def _number(value: float | str | None) -> float:
    """JSON has no NaN: metrics hold null for it, events its name."""
    return math.nan if value is None else float(value)


def _outcome_state(run: RunFolder, since: float) -> str | None:
    attempt = run.newest_attempt()
    if attempt is None or (run.attempt_dir(attempt)).stat().st_mtime < since:
        return None
    outcome = read_outcome(run, attempt)
    return outcome.state if outcome else None


def _say_end(run: RunFolder, since: float) -> int:
    attempt = run.newest_attempt()
    outcome = read_outcome(run, attempt) if attempt is not None else None
    if outcome is None or _outcome_state(run, since) is None:
        print(f"job ended before the agent recorded a reason; see {run.submit_dir}", flush=True)
        return 1
    print(f"run {run.name} {ending_text(run)}", flush=True)
    if outcome.state != "finished":
        print(f"what its nodes printed: {run.attempt_dir(attempt or 0)}", flush=True)
    return 0 if outcome.state == "finished" else 1
