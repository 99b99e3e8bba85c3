"""Slurm's command line, as far as a run needs it. Every call has a time limit: a dead controller must not hang us."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

Answer = TypeVar("Answer")

COMMAND_SECONDS = 20.0
ACTIVE_STATES = frozenset(
    {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING",
     "STAGE_OUT", "STOPPED", "SPECIAL_EXIT"}
)  # fmt: skip
"""States of a job that may still run."""
CHOOSES_CLUSTER = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
"""Variables that say which cluster is meant and who we are, rather than what a job is like: every command needs them."""
DESCRIBES_JOB = ("SLURM_", "_SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "PMI", "SUBMITIT_")
"""What variables begin with that would overrule a batch script, or tell a new job about the one we are running in."""
FILTERS_OUTPUT = ("SQUEUE_", "SINFO_", "SCONTROL_", "SACCT_")
"""What variables begin with that would change what Slurm's commands print."""
SICK_NODE = re.compile(r"down|fail|drain|unk|maint|power|reboot|\*|\$", re.IGNORECASE)
"""sinfo's long node states in which a node is not to be trusted; `*` marks one that does not answer."""


class SlurmError(Exception):
    """A Slurm command is missing, failed or did not answer; the message says which and what Slurm said."""


class NoClient(SlurmError):
    """This machine has no Slurm."""


@dataclass(frozen=True)
class Job:
    """One job as the controller sees it."""

    job_id: str
    state: str
    preempted: bool = False
    restarts: int | None = None
    """How often it has been put back into the queue."""
    reason: str = ""
    """Why it is pending, in Slurm's word (Resources, BadConstraints, ...)."""
    partition: str | None = None
    excluded: str = ""
    """Nodes that it must not get, as Slurm writes them: `n[1-2],n4`."""

    @property
    def active(self) -> bool:
        return self.state in ACTIVE_STATES


def ask(question: Callable[[], Answer], seconds: float = 60.0) -> Answer | None:
    """The answer to `question`, or None if the controller has not given one after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return question()
        except SlurmError as error:
            if time.monotonic() >= deadline:
                print(f"going on without an answer from Slurm: {error}", flush=True)
                return None
        time.sleep(2)


def run(*command: str) -> str:
    """Standard output of a Slurm command. Raises SlurmError."""
    _require(command[0])
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False, env=_kept()
        )
    except subprocess.TimeoutExpired as error:
        raise SlurmError(f"{command[0]} did not answer within {COMMAND_SECONDS:.0f} s: is slurmctld up?") from error
    if result.returncode:
        said = " ".join((result.stderr or result.stdout).split()) or f"exit code {result.returncode}"
        raise SlurmError(f"{' '.join(command[:2])} failed: {said}")
    return result.stdout


def _require(command: str) -> None:
    if shutil.which(command) is None:
        raise NoClient(f"{command} is not on PATH: this machine has no Slurm client")


def check_controller() -> None:
    """Raises SlurmError where sbatch is missing or no controller answers: sbatch itself would wait for minutes."""
    try:
        _require("sbatch")
    except NoClient as error:
        raise NoClient(f"{error}. Launch from a login node, or use cluster=local") from error
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
    fields = dict(re.findall(r"([\w:]+)=(\S*)", text))
    return Job(
        job_id,
        fields.get("JobState", "UNKNOWN"),
        preempted=_value(fields, "PreemptTime") is not None,
        restarts=int(fields["Restarts"]) if fields.get("Restarts", "").isdigit() else None,
        reason=_value(fields, "Reason") or "",
        partition=_value(fields, "Partition"),
        excluded=_value(fields, "ExcNodeList") or "",
    )


def _value(fields: dict[str, str], key: str) -> str | None:
    """The field's value, or None for Slurm's ways to say that there is none."""
    value = fields.get(key, "")
    return None if value in ("", "None", "N/A", "(null)") else value


def expand_nodes(node_list: str) -> list[str]:
    """`n[1-3]` -> n1, n2, n3, by Slurm itself."""
    return run("scontrol", "show", "hostnames", node_list).split() if node_list else []


def node_states(nodes: list[str] | None = None, partition: str | None = None) -> dict[str, str]:
    """sinfo's long state of each of `nodes`, or of all nodes of `partition` (None: of the whole cluster)."""
    if nodes is not None and not nodes:
        return {}
    which = ["--nodes", ",".join(nodes)] if nodes is not None else ["--partition", partition] if partition else []
    lines = run("sinfo", "--noheader", "--Node", *which, "--format", "%N %T").splitlines()
    return {node: state for node, _, state in (line.partition(" ") for line in lines)}


def slurmd_starts(nodes: list[str]) -> dict[str, float]:
    """When the slurmd of each of `nodes` was started (Unix time); a node that has never had one is left out."""
    text = run("scontrol", "--oneliner", "show", "node", ",".join(nodes))
    found = re.findall(r"NodeName=(\S+).*?SlurmdStartTime=(\d{4}-\S+)", text)
    return {node: time.mktime(time.strptime(when, "%Y-%m-%dT%H:%M:%S")) for node, when in found}


def is_sick(state: str) -> bool:
    """Whether a node in this long state is down, drained or silent."""
    return SICK_NODE.search(state) is not None


def sick_nodes(nodes: list[str]) -> dict[str, str]:
    """Those of `nodes` that Slurm holds for down, drained or silent, with their state."""
    return {node: state for node, state in node_states(nodes).items() if is_sick(state)}


def keep_off(job_id: str, nodes: Collection[str], wait_seconds: float = 0.0) -> None:
    """Have a pending job stay off `nodes` and off no others, and not start before `wait_seconds` have passed."""
    when = [f"starttime=now+{wait_seconds:.0f}"] if wait_seconds >= 1 else []
    run("scontrol", "update", f"jobid={job_id}", f"excnodelist={','.join(sorted(nodes))}", *when)


def requeue(job_id: str) -> None:
    """Put a running job back into the queue; it keeps its id, and its restart count goes up by one. Slurm then ends every
    process of the job, the caller too where it is one."""
    run("scontrol", "requeue", job_id)


@contextmanager
def clean_environment() -> Iterator[None]:
    """Without what would overrule a batch script: SBATCH_* win over its #SBATCH lines, and the SLURM_* of a job that we
    may be running in would bind the new job's CPUs and tasks."""
    before = dict(os.environ)
    kept = _kept()
    for key in before.keys() - kept.keys():
        del os.environ[key]
    try:
        yield
    finally:
        os.environ.update({key: value for key, value in before.items() if key not in kept})


def overruling() -> list[str]:
    """Variables that a person has set to change what sbatch does, as `SBATCH_PARTITION=urgent`: jobs go without them."""
    return sorted(f"{key}={value}" for key, value in os.environ.items() if key.startswith("SBATCH_"))


def _kept() -> dict[str, str]:
    dropped = DESCRIBES_JOB + FILTERS_OUTPUT
    return {key: value for key, value in os.environ.items() if key in CHOOSES_CLUSTER or not key.startswith(dropped)}
