"""How the attempt before this one ended, told from what it left behind and from what Slurm says of its nodes."""

from dataclasses import dataclass, field

from harness import slurm
from harness.agent.node import Node
from harness.run.attempt import Attempt, Outcome, load, read_outcome, silent_nodes
from harness.run.folder import RunFolder


@dataclass(frozen=True)
class Ending:
    """Why the run starts again, and which nodes it should not use any more."""

    reason: str
    """One of `harness.observe.run_info.RESTART_REASONS`."""
    why: str
    recorded: bool = False
    """The restart already stands in the ledger."""
    lost_nodes: dict[str, str] = field(default_factory=dict)
    """Node -> what was seen."""


def previous_ending(run: RunFolder, node: Node) -> Ending | None:
    """None for the first attempt of a run."""
    newest = run.newest_attempt()
    previous = load(run, newest) if newest is not None else None
    if previous is None:
        return None
    for event in reversed(run.events()):
        if event.get("event") == "restart" and event.get("starts") == node.attempt_key:
            return Ending(event.get("reason", "unknown"), event.get("why", ""), recorded=True)
    if previous.job_id != node.job_id:
        return Ending("user", f"launched again as job {node.job_id}")
    outcome = read_outcome(run, previous.number)
    lost = _lost_nodes(run, previous)
    if lost or (outcome is None and silent_nodes(run, previous) == previous.nodes):
        seen = ", ".join(f"{name} ({state})" for name, state in lost.items()) or "every node fell silent at once"
        return Ending("node_fail", f"node lost: {seen}", lost_nodes=lost)
    return _told_to_die(node, outcome)


def _lost_nodes(run: RunFolder, previous: Attempt) -> dict[str, str]:
    """Nodes whose agent left no word although others did, or that Slurm holds for down."""
    silent = silent_nodes(run, previous)
    sick = slurm.sick_nodes(silent)
    others_spoke = len(silent) < len(previous.nodes)
    return {name: sick.get(name, "its agent left no word") for name in silent if name in sick or others_spoke}


def _told_to_die(node: Node, outcome: Outcome | None) -> Ending:
    job = slurm.job(node.job_id)
    if job and job.preempted:
        return Ending("preempt", "Slurm preempted the job")
    if outcome and outcome.state == "terminated":
        return Ending("user", "the job was requeued")
    if outcome is None:
        return Ending("unknown", "no record of how the attempt ended")
    return Ending(outcome.reason or "unknown", outcome.why)
