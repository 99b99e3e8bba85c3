"""The one decision about restarts: `decide(facts)` says what to do and why. Pure: no clock, no files, no Slurm.

Three places gather facts and carry out the order: the launcher after ranks have failed (`recovery.ranks`), the batch script
after agents have ended (`recovery.batch`), and every start of the job (`recovery.start`). Nothing else in the harness compares,
counts or gives up.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum

from harness.recovery.budget import Budget
from harness.recovery.room import Room, keep_off
from harness.run.attempt import Outcome
from harness.run.exit_codes import CRASH_LOOP, MEANING

LONGEST_WAIT = 600.0
"""Seconds between two tries at most: a node that was repaired is found within ten minutes."""
ASK_AGAIN_SECONDS = 5.0
"""While Slurm's controller is silent, nobody else can get our nodes: we ask for as long as it takes."""


class Moment(Enum):
    """When a decision is due."""

    ranks_failed = "ranks of this attempt have died; the nodes are well"
    agents_ended = "every agent of this start has ended"
    starting = "a start of the job has its nodes, and no agent runs yet"


class Act(Enum):
    """What to do."""

    train = "start the agents on these nodes"
    restart_ranks = "start all ranks again, inside the job"
    requeue = "put the job back into the queue"
    end = "let the job end: the run is finished, or starting again can't help"
    give_up = "end the run: it gets nowhere"
    stand_aside = "leave the job to those who have taken it over"
    ask_again = "ask Slurm again in a moment"


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of the job."""

    state: str
    restarts: int | None
    """How often Slurm has put it back into the queue; None: Slurm does not say."""


@dataclass(frozen=True)
class Facts:
    """What is known when the decision is due."""

    moment: Moment
    limit: int
    """cluster.max_restarts_without_progress."""
    budget: Budget = field(default_factory=Budget)
    """What the restarts add up to, with the one that this decision would make."""
    reason: str = "unknown"
    """Why the run would start again: one of `harness.observe.run_info.RESTART_REASONS`."""
    why: str = ""
    outcome: Outcome | None = None
    """What the head agent has left word of; None: nothing."""
    fatal_exit: int | None = None
    """An exit code after which starting again can't help: of a rank, or of a node's agent."""
    on_slurm: bool = True
    job: JobFacts | None = None
    """None: the controller does not answer. Not looked at where `on_slurm` is false."""
    restarts: int = 0
    """Which start of the job we are: its number of restarts when we began."""
    nodes: tuple[str, ...] = ()
    """Nodes of this start."""
    bad_nodes: Mapping[str, str] = field(default_factory=dict)
    """Node -> what was seen: its agent could not start, or it was lost."""
    excluded: Mapping[str, str] = field(default_factory=dict)
    """Node -> why the run stays off it (excluded_nodes.json)."""
    room: Room = field(default_factory=Room)
    """Nodes that the job could have."""


@dataclass(frozen=True)
class Decision:
    """What to do, and what to say of it."""

    act: Act
    reason: str = ""
    why: str = ""
    exit_code: int = 0
    wait_seconds: float = 0.0
    bad_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes to exclude from now on, and why."""
    readmit: tuple[str, ...] = ()
    """Excluded nodes that get another chance, since too few are left without them."""
    keep_off: tuple[str, ...] = ()
    """Nodes that Slurm must not give us: the user's exclusions and ours, less those that get another chance."""
    waits_for: str = ""
    """What a run with too few nodes waits for."""


def decide(facts: Facts) -> Decision:
    """What to do now; first match wins."""
    if facts.moment is Moment.ranks_failed:
        return _ranks_failed(facts)
    if facts.moment is Moment.starting:
        return _starting(facts)
    return _agents_ended(facts)


def blamed(nodes: Collection[str], bad_nodes: Mapping[str, str]) -> Mapping[str, str]:
    """Those of `bad_nodes` that are at fault: none if all of `nodes` are bad. The batch script, which runs on one of them, has
    started; if then no agent could, or all were lost at once, the nodes are not to blame."""
    return {} if set(bad_nodes) >= set(nodes) else bad_nodes


def wait_before(tries: int, longest: float = LONGEST_WAIT) -> float:
    """Seconds before a restart after `tries` without progress: none for the first, then longer each time."""
    return min(longest, 5.0 * 2**tries) if tries else 0.0


def _ranks_failed(facts: Facts) -> Decision:
    if facts.fatal_exit is not None:
        return Decision(Act.end, why=MEANING.get(facts.fatal_exit, ""), exit_code=facts.fatal_exit)
    if facts.budget.useless > facts.limit:
        return _give_up(facts)
    wait = wait_before(facts.budget.tries, longest=60.0)
    return Decision(Act.restart_ranks, facts.reason, facts.why, wait_seconds=wait)


def _agents_ended(facts: Facts) -> Decision:
    outcome = facts.outcome
    if outcome is not None and outcome.final:
        return Decision(Act.end, outcome.reason, outcome.why, exit_code=outcome.exit_code)
    if facts.fatal_exit is not None:
        return Decision(Act.end, why=MEANING.get(facts.fatal_exit, ""), exit_code=facts.fatal_exit)
    if facts.job is None:
        return Decision(Act.ask_again, why="Slurm's controller does not answer", wait_seconds=ASK_AGAIN_SECONDS)
    if facts.job.state != "RUNNING":
        return Decision(Act.stand_aside, why=f"the job is {facts.job.state}")
    if facts.job.restarts not in (None, facts.restarts):
        return Decision(Act.stand_aside, why="a newer start of the job runs")
    if facts.budget.useless > facts.limit:
        return _give_up(facts)
    return _requeue(facts, blamed(facts.nodes, facts.bad_nodes))


def _starting(facts: Facts) -> Decision:
    if facts.budget.useless > facts.limit:
        return _give_up(facts)
    unwanted = [name for name in facts.nodes if name in facts.excluded]
    if not unwanted or not facts.on_slurm:
        return Decision(Act.train)
    if facts.room.enough_without(facts.excluded):
        why = f"the allocation holds excluded {', '.join(unwanted)}"
        return Decision(
            Act.requeue, facts.reason, why, keep_off=tuple(sorted({*facts.room.forbidden, *facts.excluded}))
        )
    why = (
        f"too few nodes without {', '.join(unwanted)}, and Slurm calls {'it' if len(unwanted) == 1 else 'them'} healthy"
    )
    return Decision(Act.train, why=why, readmit=tuple(unwanted))


def _requeue(facts: Facts, bad_nodes: Mapping[str, str]) -> Decision:
    excluded = {**facts.excluded, **bad_nodes}
    plan = keep_off(facts.room, excluded)
    return Decision(
        Act.requeue,
        facts.reason,
        facts.why,
        wait_seconds=wait_before(facts.budget.tries),
        bad_nodes=bad_nodes,
        keep_off=plan.nodes,
        waits_for=plan.waits_for,
    )


def _give_up(facts: Facts) -> Decision:
    count = facts.budget.useless - 1
    why = f"{count} restarts in a row without a new checkpoint or step (cluster.max_restarts_without_progress={facts.limit})"
    if facts.why:
        why += f"; the last one: {facts.why}"
    return Decision(Act.give_up, facts.reason, why, exit_code=CRASH_LOOP)
