"""What the job's batch script runs: decides whether this start goes on, starts the agents, and decides what follows them.

Slurm's own `--requeue` covers lost nodes and preemption. It does not cover an agent that was killed or could not start, a
launcher that crashed, or a run that stopped itself before its time limit: those are requeued here.
"""

import argparse
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

from harness import slurm
from harness.config.layout import cpus_per_node
from harness.config.schema import RootConfig
from harness.recovery.budget import budget
from harness.recovery.ladder import Act, Decision, Facts, JobFacts, Moment, blamed, decide
from harness.recovery.requeue import RequeueRefused, requeue, room
from harness.recovery.room import Room
from harness.recovery.start import Refused, begin, exclude_node, restart_event
from harness.recovery.steps import Ended, Steps
from harness.run.attempt import Attempt, load, log_path, read_end, read_outcome, silent_nodes
from harness.run.exit_codes import BATCH_CODES, JOB_FAILED, NOT_RETRIED
from harness.run.folder import RunFolder, RunFolderError
from harness.run.node import Node, this_node
from harness.system.output import keep_printing

TERMINATED = 128 + signal.SIGTERM


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.recovery.batch", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    options = parser.parse_args(arguments)
    if "SLURM_JOB_ID" not in os.environ:
        parser.error("runs inside a Slurm batch script only: SLURM_JOB_ID is not set")
    keep_printing()
    try:
        code = run_job(RunFolder(options.run))
    except RunFolderError as error:  # this host may not see the run folder: the shell tries others, a few at most
        print(error, flush=True)
        return 1
    return code if code in BATCH_CODES else JOB_FAILED


def run_job(run: RunFolder) -> int:
    """One start of the job, from its first instruction to its last; returns the batch script's exit status.

    Raises RunFolderError.
    """
    config, node = run.load_config(), this_node()
    command = [sys.executable, "-u", "-m", "harness.agent", str(run.path)]
    steps = Steps(node.nodes, node.name, node.restart_count, cpus_per_node(config), command)
    signal.signal(signal.SIGTERM, partial(_ended_by_slurm, steps))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the time limit is near: the agents save and stop
    began = time.time()
    try:
        begin(run, config, node)
    except Refused as refusal:
        print(refusal, flush=True)
        return refusal.exit_code
    return follow_up(run, config, node, steps.run(), began)


def _ended_by_slurm(steps: Steps, number: int, frame: FrameType | None) -> None:
    """Cancelled, or requeued by Slurm or by hand: the sooner the job is over, the sooner it starts again."""
    steps.kill()
    os._exit(TERMINATED)


def follow_up(run: RunFolder, config: RootConfig, node: Node, ended: Ended, began: float) -> int:
    """Decide what follows the agents' end, and do it; returns the batch script's exit status."""
    while True:
        decision = decide(gather(run, config, node, ended, began))
        if decision.act is not Act.ask_again:
            return _carry_out(run, node, decision, ended)
        print(f"{decision.why}: asking again in {decision.wait_seconds:.0f} s", flush=True)
        time.sleep(decision.wait_seconds)


def gather(run: RunFolder, config: RootConfig, node: Node, ended: Ended, began: float) -> Facts:
    """All that is known after the last agent's end. `began`: when this start of the job did (Unix time)."""
    number = run.newest_attempt()
    attempt = load(run, number) if number is not None else None
    if attempt is not None and attempt.key != node.attempt_key:
        attempt = None  # no agent of this start got as far as claiming one
    outcome = read_outcome(run, attempt.number) if attempt else None
    started = {name for name in node.nodes if attempt and log_path(run, attempt.number, name).exists()}
    lost = _lost_nodes(run, attempt, ended, began) if attempt else {}
    # without room in the run folder a healthy agent leaves no sign of its start either
    bad_nodes = lost or (_not_started(ended, started) if run.writable() else {})
    ends = [read_end(run, attempt.number, name) for name in ended.faults] if attempt else []
    told = [end for end in ends if end and end.how == "failed" and end.why]
    reason = outcome.reason if outcome and outcome.state in ("stopped", "failed") else ""
    reason = reason or next((end.reason for end in told), "") or ("node_fail" if bad_nodes else "")
    why = (
        "; ".join(end.why for end in told)
        or _why(ended, lost)
        or (outcome.why if outcome else "")
        or f"srun ended with status {ended.status}"
    )
    fatal = sorted({ended.statuses[name] for name in started & set(ended.statuses)} & NOT_RETRIED)
    at_fault = blamed(node.nodes, bad_nodes)
    pending = restart_event(run, node.next_key, reason or "unknown", "requeue", why, at_fault)
    found = slurm.ask(partial(_job_facts, node), seconds=0)
    return Facts(
        Moment.agents_ended,
        config.cluster.max_restarts_without_progress,
        budget([*run.events(), *run.ledger(None).unwritten(), pending]),
        reason=reason or "unknown",
        why=why,
        outcome=outcome,
        fatal_exit=fatal[0] if fatal else None,
        job=found,
        restarts=node.restart_count,
        nodes=tuple(node.nodes),
        bad_nodes=bad_nodes,
        excluded=run.excluded_nodes(),
        room=room(config, node.job_id) if found else Room(),
    )


def _not_started(ended: Ended, started: set[str]) -> dict[str, str]:
    """Nodes on which the agent did not get as far as its log, and why."""
    return {
        name: f"could not start: {ended.complaints.get(name, how)}"
        for name, how in ended.faults.items()
        if name not in started
    }


def _lost_nodes(run: RunFolder, attempt: Attempt, ended: Ended, began: float) -> dict[str, str]:
    """Nodes of which nothing was heard any more, and whose slurmd has started anew since: they lost power and are back."""
    silent = [name for name in silent_nodes(run, attempt) if name not in ended.faults]
    starts = (slurm.ask(partial(slurm.slurmd_starts, silent), seconds=0) or {}) if silent else {}
    return {
        name: f"lost, and back at {time.strftime('%H:%M:%S', time.localtime(when))}"
        for name, when in starts.items()
        if when > began
    }


def _job_facts(node: Node) -> JobFacts:
    found = slurm.job(node.job_id)
    return JobFacts(found.state, found.restarts) if found else JobFacts("FORGOTTEN", None)


def _why(ended: Ended, lost: dict[str, str]) -> str:
    """`n2: its agent was killed (SIGKILL)`, or srun's own complaint."""
    if lost:
        return "; ".join(f"{name}: {how}" for name, how in lost.items())
    faults = (f"{name}: {ended.complaints.get(name, how)}" for name, how in ended.faults.items())
    return "; ".join(faults) or ended.said


def _carry_out(run: RunFolder, node: Node, decision: Decision, ended: Ended) -> int:
    ledger = run.ledger(run.newest_attempt(), node.name)
    if decision.act is Act.end:
        return decision.exit_code
    if decision.act is Act.stand_aside:
        print(f"nothing to do: {decision.why}", flush=True)
        return ended.status and JOB_FAILED
    if decision.act is Act.give_up:
        ledger.write("gave_up", step=run.last_step(), why=decision.why)
        print(f"giving up: {decision.why}", flush=True)
        return decision.exit_code
    bad_nodes = dict(decision.bad_nodes)
    for name, why in bad_nodes.items():
        exclude_node(run, node, name, why)
    ledger.write(
        **restart_event(run, node.next_key, decision.reason, "requeue", decision.why, bad_nodes, decision.wait_seconds)
    )
    if decision.waits_for:
        ledger.write("waiting", why=decision.waits_for)
    print(f"requeueing: {decision.why}", flush=True)
    try:
        requeue(node, decision.keep_off, decision.wait_seconds, ledger)
    except RequeueRefused as refusal:
        ledger.write("gave_up", step=run.last_step(), why=str(refusal))
        print(f"giving up: {refusal}", flush=True)
        return JOB_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main())
