"""Puts our own job back into Slurm's queue, however long the controller takes to answer, and tells Slurm which nodes to avoid."""

import re
import signal
import time
from collections.abc import Collection
from functools import partial

from harness import slurm
from harness.config.schema import RootConfig
from harness.recovery.room import Room, keep_off
from harness.run.folder import Ledger, RunFolder
from harness.run.node import Node

REFUSED = re.compile(r"disabled|denied|invalid|not supported|not permitted", re.IGNORECASE)
"""In Slurm's words where asking again can't help."""
LONGEST_PAUSE = 60.0
"""Seconds between two requests to a silent controller, at most. They never stop: while it is silent, nobody else can get
our nodes, and the job's time limit is an end in any case."""
UPDATES = 5
"""Tries to tell Slurm of the exclusions. A start that gets an excluded node all the same gives it back."""


class RequeueRefused(Exception):
    """Slurm does not let the job be requeued; the message says so in its words, and what to do."""


def requeue(node: Node, excluded: Collection[str], wait_seconds: float, ledger: Ledger) -> None:
    """Requeue the job, then keep it off `excluded` and pending for `wait_seconds`.

    Only a pending job's exclusions can be changed, and requeueing ends every process of the job, this one too: so it must
    not die of SIGTERM before the second request. Raises RequeueRefused.
    """
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        _until_requeued(node, ledger)
        for _ in range(UPDATES):
            try:
                return slurm.keep_off(node.job_id, excluded, wait_seconds)
            except slurm.SlurmError as error:
                print(
                    f"could not exclude {', '.join(excluded) or 'nothing'} from job {node.job_id}: {error}", flush=True
                )
                time.sleep(1)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _until_requeued(node: Node, ledger: Ledger) -> None:
    pause = 2.0
    while True:
        try:
            return slurm.requeue(node.job_id)
        except slurm.SlurmError as error:
            if REFUSED.search(str(error)):
                raise RequeueRefused(f"{error}. Launch the run again to resume it.") from error
            if pause == 2.0:
                ledger.write("requeue_delayed", why=str(error))
            print(f"could not requeue job {node.job_id} ({error}): trying again in {pause:.0f} s", flush=True)
        time.sleep(pause)
        pause = min(LONGEST_PAUSE, 2 * pause)
        found = slurm.ask(partial(slurm.job, node.job_id), seconds=0)
        if found and (found.state != "RUNNING" or found.restarts != node.restart_count):
            return None  # the request got through, only its answer did not


def apply_exclusions(config: RootConfig, run: RunFolder, job_id: str) -> tuple[str, ...] | None:
    """Tell Slurm of exclusions that were edited while the job is pending; returns them, or None if Slurm has them already.
    Raises SlurmError."""
    wanted = keep_off(room(config, job_id), run.excluded_nodes()).nodes
    found = slurm.job(job_id)
    if found is None or set(slurm.expand_nodes(found.excluded)) == set(wanted):
        return None
    slurm.keep_off(job_id, wanted)
    return wanted


def room(config: RootConfig, job_id: str) -> Room:
    """The nodes that the job could have, as far as Slurm answers."""
    named = slurm.ask(partial(slurm.expand_nodes, ",".join(config.cluster.exclude)))
    forbidden = frozenset(config.cluster.exclude if named is None else named)
    found = slurm.ask(partial(slurm.job, job_id))
    states = slurm.ask(partial(slurm.node_states, partition=found.partition)) if found else None
    sick = frozenset(name for name, state in (states or {}).items() if slurm.is_sick(state))
    return Room(config.cluster.nodes, states, sick, forbidden)
