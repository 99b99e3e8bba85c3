"""Prints what a run does, as it does it, until it ends. Leaving never touches the run."""

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
        news = [(record["time"], step_line(record, self._steps)) for record in self._run.last_metrics(NEWEST_LINES)]
        news += [(record["time"], validation_line(record)) for record in self._run.validations()]
        news += [
            (record["time"], event_line(record)) for record in self._run.events() if record["event"] not in QUIET_EVENTS
        ]
        for when, line in sorted(news):
            if when > self._shown_until:
                print(line, flush=True)
        self._shown_until = max([self._shown_until, *(when for when, _ in news)])


def step_line(record: dict[str, Any], steps: int) -> str:
    """`step 20/120  loss 5.321  4,012 tokens/s  lr 3.0e-03  1.02 s  1 min 42 s left`."""
    left = (steps - record["step"]) * record["step_seconds"]
    skipped = f"  SKIPPED: {record['skipped']}" if record.get("skipped") else ""
    return (
        f"step {record['step']:,}/{steps:,}  loss {_number(record['loss']):.4f}  {record['tokens_per_second']:,.0f} tokens/s  "
        f"grad norm {_number(record['grad_norm']):.2f}  lr {record['lr']:.1e}  {record['step_seconds']:.2f} s/step  "
        f"{duration_text(left)} left{skipped}"
    )


def validation_line(record: dict[str, Any]) -> str:
    """`step 20: validation loss 5.1234 (1.3 s)`."""
    return f"step {record['step']:,}: validation loss {_number(record['loss']):.4f} ({record['seconds']:.1f} s)"


def event_line(record: dict[str, Any]) -> str:
    """`14:02:11 restart: rank_crash at step 40 on n1`."""
    clock = time.strftime("%H:%M:%S", time.localtime(record["time"]))
    # what happened to a node is recorded by another
    subject = record.get("lost") or record.get("readmitted")
    parts = [f"{clock} {record['event'].replace('_', ' ')}{f' {subject}' if subject else ''}"]
    if record.get("reason"):
        parts.append(f"({record['reason']})")
    if record.get("step") is not None:
        parts.append(f"at step {record['step']:,}")
    if record.get("node") and not subject:
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
