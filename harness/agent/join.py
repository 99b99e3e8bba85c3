"""How the agents of one start of the job agree on an attempt: the head node claims it, the others wait for it."""

import socket

from harness.run.attempt import Attempt, claim, wait_for
from harness.run.damage import damages
from harness.run.files import keep_trying
from harness.run.folder import RunFolder, RunFolderError
from harness.run.node import Node

CLAIM_SECONDS = 7 * 86400.0
"""How long a head agent tries to claim an attempt on a full disk: longer than most time limits, which end it in any case."""


def join_attempt(run: RunFolder, node: Node) -> Attempt:
    """The attempt that this node takes part in. Blocks until the head node has claimed it, and until there is room for
    its record; the job's time limit ends it in any case."""
    if not node.is_head:
        return wait_for(run, node.attempt_key)
    attempt = _claim(run, node)
    run.ledger(attempt.number, node.name).write(
        "attempt_start", step=run.last_step(), job_id=node.job_id, nodes=node.nodes, reason=_reason(run, node)
    )
    for damage in damages(run):
        run.ledger(attempt.number, node.name).write(
            "damaged_file", file=damage.path.name, why=f"{damage.path.name}: {damage.why}. {damage.fix}"
        )
    return attempt


def _reason(run: RunFolder, node: Node) -> str | None:
    """Why the run has started again, as recorded before this start; None for its first."""
    restarts = [event for event in run.events() if event.get("starts") == node.attempt_key]
    return restarts[-1].get("reason") if restarts else None


def _claim(run: RunFolder, node: Node) -> Attempt:
    def write() -> Attempt:
        try:
            return claim(run, node.attempt_key, node.job_id, node.nodes, node.address, _free_port(node.address))
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise RunFolderError(f"{run.attempts_dir}: {error.strerror}") from error  # waiting does not mend it

    return keep_trying(write, f"the attempt's record to {run.attempts_dir}", CLAIM_SECONDS)


def _free_port(address: str) -> int:
    """A port that is free now on this address, for the ranks' rendezvous."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])
