"""How the agents of one start of the job agree on an attempt: the head node claims it, the others wait for it."""

import socket
import time

from harness import slurm
from harness.agent.node import Node
from harness.agent.previous import Ending, previous_ending
from harness.config.schema import RootConfig
from harness.run.attempt import Attempt, claim, read_outcome, wait_for
from harness.run.budget import restarts_without_progress
from harness.run.exit_codes import CRASH_LOOP
from harness.run.folder import RunFolder

HEAD_SECONDS = 300.0


class Refused(Exception):
    """This start of the job must not train; the message says why, `exit_code` is the task's."""

    def __init__(self, why: str, exit_code: int) -> None:
        super().__init__(why)
        self.exit_code = exit_code


def join_attempt(run: RunFolder, config: RootConfig, node: Node) -> Attempt:
    """The attempt that this node takes part in. Raises Refused, or TimeoutError where the head node never came."""
    if not node.is_head:
        return wait_for(run, node.attempt_key, HEAD_SECONDS)
    ending = previous_ending(run, node)
    if ending is not None:
        _record(run, node, ending)
        _keep_off_excluded_nodes(run, node)
        _check_budget(run, config)
    attempt = claim(run, node.attempt_key, node.job_id, node.nodes, node.address, _free_port(node.address))
    ledger = run.ledger(attempt.number, node.name)
    ledger.write(
        "attempt_start",
        step=run.last_step(),
        job_id=node.job_id,
        nodes=node.nodes,
        reason=ending.reason if ending else None,
    )
    return attempt


def _record(run: RunFolder, node: Node, ending: Ending) -> None:
    previous = run.newest_attempt()
    ledger = run.ledger(previous, node.name)
    for name, seen in ending.lost_nodes.items():
        if run.exclude_node(name, f"lost in attempt {previous}: {seen}"):
            ledger.write("node_excluded", step=run.last_step(), lost=name, why=seen)
    finished = (
        previous is not None and (outcome := read_outcome(run, previous)) is not None and outcome.state == "finished"
    )
    if not ending.recorded and not finished:
        ledger.write(
            "restart",
            step=run.last_step(),
            reason=ending.reason,
            how="new attempt",
            why=ending.why,
            starts=node.attempt_key,
        )


def _keep_off_excluded_nodes(run: RunFolder, node: Node) -> None:
    """A lost node may be back and in our allocation: ask Slurm for others."""
    excluded = run.excluded_nodes()
    unwanted = sorted(set(node.nodes) & set(excluded))
    if not unwanted or not node.on_slurm:
        return
    run.ledger(run.newest_attempt(), node.name).write(
        "requeued_elsewhere", why=f"the allocation holds excluded {', '.join(unwanted)}"
    )
    slurm.requeue_without(node.job_id, sorted(excluded))
    time.sleep(60)  # Slurm ends us within a moment
    raise Refused(f"requeued without {', '.join(unwanted)}, but Slurm did not end this start of the job", 1)


def _check_budget(run: RunFolder, config: RootConfig) -> None:
    limit = config.cluster.max_restarts_without_progress
    useless = restarts_without_progress(run.events())
    if useless > limit:
        why = f"{useless} restarts in a row without a new step (cluster.max_restarts_without_progress={limit})"
        run.ledger(run.newest_attempt()).write("gave_up", step=run.last_step(), why=why)
        raise Refused(why, CRASH_LOOP)


def _free_port(address: str) -> int:
    """A port that is free now on this address, for the ranks' rendezvous."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])
