"""Slurm's command line, as far as a run needs it. Every call has a time limit: a dead controller must not hang us."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

COMMAND_SECONDS = 20.0
ACTIVE_STATES = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING",
     "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"}
)  # fmt: skip
"""States of a job that may still run."""
SICK_NODE = re.compile(r"down|fail|drain|unk|maint|power|reboot|\*|\$", re.IGNORECASE)
"""sinfo's long node states in which a node is not to be trusted; `*` marks one that does not answer."""


class SlurmError(Exception):
    """A Slurm command is missing, failed or did not answer; the message says which and what Slurm said."""


@dataclass(frozen=True)
class Job:
    """One job as the controller sees it."""

    job_id: str
    state: str
    preempted: bool

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES


def run(*command: str) -> str:
    """Standard output of a Slurm command. Raises SlurmError."""
    _require(command[0])
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {COMMAND_SECONDS:.0f} s: is slurmctld up?") from error
    if result.returncode:
        said = " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
        raise SlurmError(f"{' '.join(command[:2])} failed: {said}")
    return result.stdout


def _require(command: str) -> None:
    if shutil.which(command) is None:
        raise SlurmError(
            f"{command} is not on PATH: this machine has no Slurm client. Launch from a login node, or use cluster=local"
        )


def check_controller() -> None:
    """Raises SlurmError where sbatch is missing or no controller answers: sbatch itself would wait for minutes."""
    _require("sbatch")
    try:
        answer = run("scontrol", "ping")
    except SlurmError as error:
        answer = str(error)
    if not re.search(r"\bis UP\b", answer):
        said = " ".join(answer.replace("*", "").split())
        raise SlurmError(f"no Slurm controller answers ({said}); is SLURM_CONF right? Or use cluster=local")


def job(job_id: str) -> Job | None:
    """The job, or None once the controller has forgotten it. Raises SlurmError where the controller does not answer."""
    try:
        text = run("scontrol", "--oneliner", "show", "job", job_id)
    except SlurmError as error:
        if "Invalid job id" in str(error):
            return None
        raise
    fields = dict(re.findall(r"(\w+)=(\S*)", text))
    return Job(job_id, fields.get("JobState", "UNKNOWN"), fields.get("PreemptTime", "None") not in ("None", "N/A"))


def expand_nodes(node_list: str) -> list[str]:
    """`n[1-3]` -> n1, n2, n3, by Slurm itself."""
    return run("scontrol", "show", "hostnames", node_list).split() if node_list else []


def sick_nodes(nodes: list[str]) -> dict[str, str]:
    """Those of `nodes` that Slurm holds for down, drained or silent, with their state."""
    if not nodes:
        return {}
    states: dict[str, str] = {}
    for line in run("sinfo", "--noheader", "--Node", "--nodes", ",".join(nodes), "--format", "%N %T").splitlines():
        node, _, state = line.partition(" ")
        if SICK_NODE.search(state):
            states[node] = state
    return states


def requeue(job_id: str) -> None:
    """Put a running job back into the queue; it keeps its id, and its restart count goes up by one."""
    run("scontrol", "requeue", job_id)


def requeue_without(job_id: str, nodes: list[str]) -> None:
    """Put a running job back into the queue and keep it off `nodes`.

    Only a pending job's list can be changed, and requeueing ends every process of the job, this one too: so it must not
    die of SIGTERM before the second command. Should it die all the same, the job is requeued without the exclusion,
    and the next start tries again.
    """
    previous = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run("scontrol", "requeue", job_id)
        run("scontrol", "update", f"jobid={job_id}", f"excnodelist={','.join(nodes)}")
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without the SLURM_* of a job that we may be running in: they would bind the new job's CPUs and tasks."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key.startswith(("SLURM_", "SRUN_", "PMI")) and key != "SLURM_CONF"
    }
    for key in inherited:
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update(inherited)
