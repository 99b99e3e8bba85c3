"""Which sbatch flags a user may set, and why the others would break the run."""

import re
from collections.abc import Iterator

from harness.config.schema import ClusterConfig

ONE_AGENT = "one agent per node; cluster.ranks_per_node sets the trainers"
REQUEUED = "a run survives lost nodes and its time limit by being requeued"
PRINTED = "the harness reads the job's id from what sbatch prints"

SET_BY_US = {
    "nodes": "cluster.nodes",
    "time": "cluster.time",
    "ntasks": ONE_AGENT,
    "ntasks-per-node": ONE_AGENT,
    "tasks-per-node": ONE_AGENT,
    "exclude": "cluster.exclude",
    "partition": "cluster.partition",
    "account": "cluster.account",
    "qos": "cluster.qos",
    "signal": "cluster.signal_delay_seconds",
    "gpus-per-node": "cluster.gpus_per_node",
    "cpus-per-task": "cluster.cpus_per_node",
    "job-name": "run.name",
    "output": "the run folder",
    "error": "the run folder",
    "array": "-m, one job per run",
}
"""Flags that other keys set, and those keys."""

REFUSED = {
    "ntasks-per-core": ONE_AGENT,
    "ntasks-per-gpu": ONE_AGENT,
    "ntasks-per-socket": ONE_AGENT,
    "no-requeue": REQUEUED,
    "no-kill": "a job that goes on without a lost node is never started again on another one",
    "parsable": PRINTED,
    "quiet": PRINTED,
    "help": PRINTED,
    "usage": PRINTED,
    "version": PRINTED,
    "test-only": "nothing would be submitted; use dry_run=true or python -m harness.preflight",
    "wait": "launching returns at once; follow=true stays",
    "wrap": "the batch script is the harness's own; cluster.setup adds lines to it",
    "clusters": "only sbatch would follow it; set SLURM_CLUSTERS in the environment, which every Slurm command follows",
}
"""Flags that would break the run, and how."""

WHOLE = frozenset({"gpus"})
"""Flags that are the beginning of one above and a flag of their own; sbatch takes any other beginning for the whole."""


def check_sbatch(cluster: ClusterConfig) -> Iterator[str]:
    """Every flag that can't be given, and values that would end a line of the batch script."""
    for key, value in cluster.sbatch.items():
        flag, said = key.replace("_", "-"), f"cluster.sbatch.{key}={value}"
        if problem := _problem(flag, value):
            yield f"{said}: {problem}"
        elif value and not value.isprintable():
            yield f"cluster.sbatch.{key}={value!r}: must be one line of printable text"
    given = {"partition": cluster.partition, "account": cluster.account, "qos": cluster.qos}
    for key, value in given.items():
        if value is not None and not (value.strip() and value.isprintable()):
            yield f"cluster.{key}={value!r}: expected a name, or null for Slurm's default"
    for node in cluster.exclude:
        if not re.fullmatch(r"[\w.,\[\]-]+", node, re.ASCII):
            yield f"cluster.exclude={node!r}: expected names of nodes, as in cluster.exclude=[n4,'n[7-9]']"


def _problem(flag: str, value: str | None) -> str | None:
    if not re.fullmatch(r"[a-z][a-z0-9-]*", flag):
        return "not the name of an sbatch flag; write it in full, without dashes in front"
    if flag == "requeue":
        return None if value is None or value.lower() == "true" else f"{REQUEUED}; leave it out"
    if flag in SET_BY_US:
        return f"set by the harness; use {SET_BY_US[flag]}"
    if flag in REFUSED:
        off = value is None or value.lower() == "false"
        return None if off else REFUSED[flag]
    whole = sorted(
        name for name in SET_BY_US | REFUSED | {"requeue": ""} if name.startswith(flag) and flag not in WHOLE
    )
    return f"sbatch would take it for --{whole[0]}; write the flag in full" if whole else None
