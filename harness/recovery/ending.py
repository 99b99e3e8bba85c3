"""How the attempt before this start ended, told from what it left behind and from what Slurm says of its nodes."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness import slurm
from harness.run.attempt import Attempt, Outcome, load, read_outcome, silent_nodes
from harness.run.folder import RunFolder
from harness.run.node import Node

REQUEUES = frozenset({"restart", "requeued_elsewhere"})
"""Events that name the start which they lead to (`starts`)."""

SHELL = "batch script"
"""How a restart came about that the batch script's shell has recorded (`fallback.sh`)."""


@dataclass(frozen=True)
class Ending:
    """Why the run starts again, and which nodes it should not use any more."""

    reason: str
    """One of `harness.observe.run_info.RESTART_REASONS`."""
    why: str
    recorded: bool = False
    """The restart is in the ledger already."""
    bad_nodes: dict[str, str] = field(default_factory=dict)
    """Node -> what was seen: it was lost, or its agent could not start."""


def previous_ending(run: RunFolder, node: Node, events: list[dict[str, Any]]) -> Ending | None:
    """None for the first start of a run."""
    for event in reversed(events):
        if event.get("event") in REQUEUES and event.get("starts") == node.attempt_key:
            why = event.get("why", "")
            # the shell could not exclude them itself; Python has, and somebody may have let them back in meanwhile
            bad_nodes = event.get("bad_nodes", ()) if event.get("how") == SHELL else ()
            return Ending(event.get("reason", "unknown"), why, True, dict.fromkeys(bad_nodes, why))
    newest = run.newest_attempt()
    previous = load(run, newest) if newest is not None else None
    if previous is None:
        return None
    if previous.job_id != node.job_id:
        return Ending("user", f"launched again as job {node.job_id}")
    outcome = read_outcome(run, previous.number)
    lost = _lost_nodes(run, previous)
    if lost or (outcome is None and silent_nodes(run, previous) == previous.nodes):
        seen = ", ".join(f"{name} ({state})" for name, state in lost.items()) or "every node fell silent at once"
        return Ending("node_fail", f"node lost: {seen}", bad_nodes=lost)
    return _told_to_die(node, outcome)


def _lost_nodes(run: RunFolder, previous: Attempt) -> dict[str, str]:
    """Nodes whose agent recorded no end although others did, or that Slurm considers down."""
    silent = silent_nodes(run, previous)
    sick = slurm.ask(partial(slurm.sick_nodes, silent)) or {}
    others_spoke = len(silent) < len(previous.nodes)
    return {name: sick.get(name, "its agent recorded no end") for name in silent if name in sick or others_spoke}


def _told_to_die(node: Node, outcome: Outcome | None) -> Ending:
    job = slurm.ask(partial(slurm.job, node.job_id)) if node.on_slurm else None
    if job and job.preempted:
        return Ending("preempt", "Slurm preempted the job")
    if outcome and outcome.state == "terminated":
        return Ending("user", "the job was requeued")
    if outcome is None:
        return Ending("unknown", "no record of how the attempt ended")
    return Ending(outcome.reason or "unknown", outcome.why)
