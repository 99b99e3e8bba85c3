"""What precedes every start of the job: how the last attempt ended, which nodes to keep out, and whether to go on at all."""

import contextlib
from collections.abc import Collection
from typing import Any

from harness.checkpoint.folders import complete_steps
from harness.config.schema import RootConfig
from harness.recovery.budget import budget
from harness.recovery.ending import Ending, previous_ending
from harness.recovery.ladder import Act, Decision, Facts, Moment, decide
from harness.recovery.requeue import RequeueRefused, requeue, room
from harness.recovery.room import Room
from harness.run.exit_codes import JOB_FAILED, OK
from harness.run.folder import RunFolder
from harness.run.node import Node


class Refused(Exception):
    """This start of the job must not train; the message says why, `exit_code` is the job's."""

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code


def begin(run: RunFolder, config: RootConfig, node: Node) -> None:
    """Record why the run starts again, and decide whether it does so on these nodes. Raises Refused."""
    events = run.events()
    ending = previous_ending(run, node, events)
    if ending is not None:
        _exclude(run, node, ending)
        if not ending.recorded:
            record = restart_event(run, node.attempt_key, ending.reason, "new attempt", ending.why, ending.bad_nodes)
            run.ledger(run.newest_attempt(), node.name).write(**record)
            events.append(record)
    excluded = run.excluded_nodes()
    unwanted = node.on_slurm and set(node.nodes) & set(excluded)
    facts = Facts(
        Moment.starting,
        config.cluster.max_restarts_without_progress,
        budget(events),
        reason=ending.reason if ending else "unknown",
        why=ending.why if ending else "",
        on_slurm=node.on_slurm,
        nodes=tuple(node.nodes),
        excluded=excluded,
        room=room(config, node.job_id) if unwanted else Room(),
    )
    _carry_out(run, node, decide(facts))


def restart_event(
    run: RunFolder, starts: str, reason: str, how: str, why: str, bad_nodes: Collection[str], wait_seconds: float = 0.0
) -> dict[str, Any]:
    """The ledger's line of one restart: `starts` is the key of the start that it leads to."""
    return {
        "event": "restart",
        "step": progress(run),
        "reason": reason,
        "how": how,
        "why": why,
        "starts": starts,
        **({"bad_nodes": sorted(bad_nodes)} if bad_nodes else {}),
        **({"wait_seconds": wait_seconds} if wait_seconds else {}),
    }


def progress(run: RunFolder) -> int:
    """The furthest step that is known: the newest complete checkpoint's, or the last one logged."""
    return max([run.last_step(), *complete_steps(run.checkpoints_dir)])


def _exclude(run: RunFolder, node: Node, ending: Ending) -> None:
    previous = run.newest_attempt()
    for name, seen in ending.bad_nodes.items():
        why = seen if ending.recorded else f"lost in attempt {previous}: {seen}"
        exclude_node(run, node, name, why)


def exclude_node(run: RunFolder, node: Node, name: str, why: str) -> None:
    """Keep `name` out of the run from now on, and record it unless it already was. On a full disk Slurm alone is told."""
    try:
        excluded_now = run.exclude_node(name, why)
    except OSError as error:
        print(f"{name} is excluded, and {run.excluded_path} can't say so: {error}", flush=True)
        return
    if excluded_now:
        run.ledger(run.newest_attempt(), node.name).write("node_excluded", step=run.last_step(), lost=name, why=why)


def _carry_out(run: RunFolder, node: Node, decision: Decision) -> None:
    ledger = run.ledger(run.newest_attempt(), node.name)
    if decision.act is Act.give_up:
        ledger.write("gave_up", step=progress(run), why=decision.why)
        raise Refused(f"giving up: {decision.why}", decision.exit_code)
    if decision.act is Act.requeue:
        ledger.write("requeued_elsewhere", reason=decision.reason, why=decision.why, starts=node.next_key)
        try:
            requeue(node, decision.keep_off, decision.wait_seconds, ledger)
        except RequeueRefused as refusal:
            raise Refused(str(refusal), JOB_FAILED) from refusal
        raise Refused(f"requeued: {decision.why}", OK)
    for name in decision.readmit:
        with contextlib.suppress(OSError):  # on a full disk it stays in the list, and is readmitted again
            run.readmit_node(name)
        ledger.write("node_readmitted", step=run.last_step(), readmitted=name, why=decision.why)
