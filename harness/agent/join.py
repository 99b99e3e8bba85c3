"""How the agents of one start of the job agree on an attempt: the head node claims it, the others wait for it."""

import errno
import socket
import time

from harness.run.attempt import Attempt, claim, wait_for
from harness.run.folder import RunFolder
from harness.run.node import Node

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE})
"""A folder that can't be written now, and may be again: the run waits instead of dying."""
LONGEST_PAUSE = 60.0


def join_attempt(run: RunFolder, node: Node) -> Attempt:
    """The attempt that this node takes part in. Blocks until the head node has claimed it, and until there is room for
    its record; the job's time limit ends it in any case."""
    if not node.is_head:
        return wait_for(run, node.attempt_key)
    attempt = _claim(run, node)
    run.ledger(attempt.number, node.name).write(
        "attempt_start", step=run.last_step(), job_id=node.job_id, nodes=node.nodes, reason=_reason(run, node)
    )
    return attempt


def _reason(run: RunFolder, node: Node) -> str | None:
    """Why the run has started again, as recorded before this start; None for its first."""
    restarts = [event for event in run.events() if event.get("starts") == node.attempt_key]
    return restarts[-1].get("reason") if restarts else None


def _claim(run: RunFolder, node: Node) -> Attempt:
    pause = 1.0
    while True:
        try:
            return claim(run, node.attempt_key, node.job_id, node.nodes, node.address, _free_port(node.address))
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            print(f"{run.attempts_dir}: {error.strerror}; waiting for room, trying again in {pause:.0f} s", flush=True)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)


def _free_port(address: str) -> int:
    """A port that is free now on this address, for the ranks' rendezvous."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as s:
        s.bind((address, 0))
        return int(s.getsockname()[1])
