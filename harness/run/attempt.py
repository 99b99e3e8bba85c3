"""One attempt: one start of the job, on its nodes. Its records are files, so that the next attempt can tell how it ended.

attempts/003/
  attempt.json        which start of which job this is, its nodes, where its ranks meet
  NODE.log            what the node's agent and ranks printed
  NODE.end.json       written by every agent that ended by itself or on SIGTERM; a node that lost power has none
  outcome.json        how the attempt ended, by its head node
"""

import dataclasses
import os
import shutil
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

from harness.run.files import write_json
from harness.run.folder import RunFolder
from harness.run.records import read_sound


@dataclass(frozen=True)
class Attempt:
    """What all agents of one attempt share."""

    number: int
    key: str
    """`JOB.RESTARTS`: this start of this job, and no other."""
    job_id: str
    nodes: list[str]
    head: str
    rendezvous_host: str
    rendezvous_port: int
    started: float


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    state: str
    """finished, stopped (saved on request), failed or terminated (told to die)."""
    reason: str
    why: str
    final: bool
    """Starting again can't help, or is not needed."""
    exit_code: int = 0


def claim(run: RunFolder, key: str, job_id: str, nodes: list[str], host: str, port: int) -> Attempt:
    """Create the next attempt folder with its record inside, in one atomic step. Called by the head node only."""
    while True:
        number = (run.newest_attempt() or 0) + 1 if run.attempts() else 0
        attempt = Attempt(number, key, job_id, nodes, nodes[0], host, port, time.time())
        draft = run.attempts_dir / f".draft-{uuid.uuid4().hex[:8]}"
        draft.mkdir(parents=True)
        write_json(draft / "attempt.json", dataclasses.asdict(attempt))
        try:
            os.rename(draft, run.attempt_dir(number))  # fails where somebody else has just taken the number
            return attempt
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            time.sleep(0.1)


def load(run: RunFolder, number: int) -> Attempt | None:
    """The attempt's record; None if there is none, or none that can be read."""
    return read_sound(run.attempt_dir(number) / "attempt.json", Attempt)


def wait_for(run: RunFolder, key: str) -> Attempt:
    """The attempt that the head node has claimed for this start of the job. Blocks until it has: if the head's agent fails,
    the batch script ends the others."""
    while True:
        newest = run.newest_attempt()
        attempt = load(run, newest) if newest is not None else None
        if attempt and attempt.key == key:
            return attempt
        time.sleep(0.1)


def log_path(run: RunFolder, number: int, node: str) -> Path:
    return run.attempt_dir(number) / f"{node}.log"


@dataclass(frozen=True)
class End:
    """How one node's agent ended."""

    time: float
    how: str
    """As `Outcome.state`."""
    reason: str = ""
    why: str = ""


def write_end(run: RunFolder, number: int, node: str, how: str, reason: str = "", why: str = "") -> None:
    """Leave word that the node's agent ended in an orderly way, and why."""
    end = End(time.time(), how, reason, why)
    write_json(run.attempt_dir(number) / f"{node}.end.json", dataclasses.asdict(end))


def read_end(run: RunFolder, number: int, node: str) -> End | None:
    """What the node's agent left word of, or None."""
    return read_sound(run.attempt_dir(number) / f"{node}.end.json", End)


def silent_nodes(run: RunFolder, attempt: Attempt) -> list[str]:
    """Nodes whose agent left no word: killed, cut off or without power."""
    return [node for node in attempt.nodes if not (run.attempt_dir(attempt.number) / f"{node}.end.json").exists()]


def write_outcome(run: RunFolder, number: int, outcome: Outcome) -> None:
    write_json(run.attempt_dir(number) / "outcome.json", dataclasses.asdict(outcome))


def read_outcome(run: RunFolder, number: int) -> Outcome | None:
    """How the attempt ended; None: its head node has left no word, or none that can be read."""
    return read_sound(run.attempt_dir(number) / "outcome.json", Outcome)


def ending_text(run: RunFolder) -> str:
    """How a run whose job is over has ended, in the words of whoever recorded it last."""
    for event in reversed(run.events()):
        if event.get("event") == "gave_up":
            return f"gave up: {event.get('why', '')}"
        if event.get("event") in ("attempt_start", "submitted"):
            break
    newest = run.newest_attempt()
    outcome = read_outcome(run, newest) if newest is not None else None
    return f"{outcome.state}: {outcome.why}" if outcome else "ended; no agent recorded an outcome"
