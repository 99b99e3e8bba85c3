"""Runs in the batch script after srun has returned, and decides whether the job goes back into the queue.

Slurm's own `--requeue` covers lost nodes and preemption. It does not cover an agent that was killed, a launcher that
crashed, or a run that stopped itself before its time limit: those are requeued here, unless somebody has cancelled the
job meanwhile or the run makes no progress any more.
"""

import argparse
import os
import sys
from pathlib import Path

from harness import slurm
from harness.run.attempt import attempt_key, read_outcome
from harness.run.budget import restarts_without_progress
from harness.run.folder import RunFolder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.cluster.aftermath", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--srun-status", type=int, required=True, help="exit status of srun")
    options = parser.parse_args(arguments)
    job_id = os.environ.get("SLURM_JOB_ID")
    if not job_id:
        parser.error("runs inside a Slurm batch script only: SLURM_JOB_ID is not set")
    return decide(RunFolder(options.run), job_id, int(os.environ.get("SLURM_RESTART_COUNT", "0")), options.srun_status)


def decide(run: RunFolder, job_id: str, restart_count: int, srun_status: int) -> int:
    """Requeue the job or let it end; returns the batch script's exit status."""
    attempt = run.newest_attempt()
    if attempt is not None and attempt_key(run, attempt) != f"{job_id}.{restart_count}":
        attempt = None  # srun never got as far as our agents
    outcome = read_outcome(run, attempt) if attempt is not None else None
    if outcome and outcome.final:
        return 0 if outcome.state == "finished" else srun_status or 1
    ledger = run.ledger(attempt)
    found = slurm.job(job_id)
    if found is None or found.state != "RUNNING":
        return srun_status  # cancelled, or requeued by Slurm itself
    reason = (outcome.reason if outcome and outcome.state in ("stopped", "failed") else "") or "unknown"
    config = run.load_config()
    limit = config.cluster.max_restarts_without_progress
    useless = restarts_without_progress(run.events())
    if useless >= limit:
        ledger.write(
            "gave_up",
            why=f"{useless} restarts in a row without a new step (cluster.max_restarts_without_progress={limit})",
        )
        return srun_status or 1
    why = outcome.why if outcome else f"srun ended with status {srun_status} before the head agent could say why"
    starts = f"{job_id}.{restart_count + 1}"
    ledger.write("restart", step=run.last_step(), reason=reason, how="requeue", why=why, starts=starts)
    slurm.requeue(job_id)
    return srun_status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except slurm.SlurmError as error:
        sys.exit(f"could not requeue: {error}. Launch the run again to resume it.")
