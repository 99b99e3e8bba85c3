"""Asks Slurm whether it would take the job: it answers, has the partition and the nodes, and accepts the very batch script."""

import os
import re
import subprocess
from dataclasses import dataclass, field

from harness import slurm
from harness.cluster.submit import SubmissionError, batch_script
from harness.config.schema import ClusterKind, RootConfig
from harness.launch.launch import run_folder
from harness.preflight.finding import Finding, Subject, skipped


def check_slurm(subject: Subject) -> Finding:
    """Nothing is submitted."""
    config = subject.config
    if config.cluster.kind is not ClusterKind.slurm:
        return skipped("cluster=local has no scheduler")
    try:
        slurm.check_controller()
        slurm.run("squeue", "--noheader", "--user", str(os.getuid()))
        partitions = _partitions()
        excluded = _excluded(config)
    except slurm.SlurmError as error:
        return Finding("Slurm does not answer", failures=(f"cluster=slurm: {error}",))
    failures, warnings = _nodes(config, partitions, excluded)
    accepted, said = _test_only(config)
    if not accepted:
        failures.append(
            f"sbatch --test-only says: {said}. Change cluster.partition, nodes, time, gpus_per_node, cpus_per_node, exclude, "
            "account, qos or sbatch accordingly"
        )
    return Finding(
        f"Slurm says: {said}" if accepted else "Slurm refuses the job",
        failures=tuple(failures),
        warnings=tuple(warnings),
        facts={"test_only": said, "accepted": accepted},
    )


@dataclass
class _Partition:
    default: bool = False
    states: dict[str, str] = field(default_factory=dict)
    """Node -> state."""


def _partitions() -> dict[str, _Partition]:
    """Partitions that we may see, by name. Raises SlurmError."""
    found: dict[str, _Partition] = {}
    for line in slurm.run("sinfo", "--noheader", "--Node", "--format", "%P|%N|%T").splitlines():
        name, node, state = (part.strip() for part in line.split("|"))
        partition = found.setdefault(name.rstrip("*"), _Partition())
        partition.default |= name.endswith("*")
        partition.states[node] = state
    return found


def _excluded(config: RootConfig) -> set[str]:
    """Nodes that the job may not use. Raises SlurmError."""
    named = slurm.expand_nodes(",".join(config.cluster.exclude))
    return {*named, *run_folder(config).excluded_nodes()}


def _nodes(config: RootConfig, partitions: dict[str, _Partition], excluded: set[str]) -> tuple[list[str], list[str]]:
    """Failures and warnings about partition and nodes."""
    cluster = config.cluster
    names = (
        cluster.partition.split(",")
        if cluster.partition
        else [name for name, partition in partitions.items() if partition.default]
    )
    unknown = [name for name in names if name not in partitions]
    if unknown or not names:
        there = ", ".join(sorted(partitions)) or "none that you may see"
        what = f"no such partition as {', '.join(unknown)}" if unknown else "Slurm has no default partition"
        return [f"cluster.partition={cluster.partition or 'null'}: {what}; there are {there}"], []
    # a job runs in one of them
    rooms = {name: {n: s for n, s in partitions[name].states.items() if n not in excluded} for name in names}
    most, states = max(rooms.items(), key=lambda room: len(room[1]))
    if cluster.nodes > len(states):
        without = f" without the {len(excluded)} excluded" if excluded else ""
        return [
            f"cluster.nodes={cluster.nodes}: partition {most} has {len(states)} node{'s' * (len(states) != 1)}{without}; ask for "
            "fewer, or for another partition"
        ], []
    sick = {node: state for node, state in states.items() if slurm.SICK_NODE.search(state)}
    if cluster.nodes > len(states) - len(sick):
        listing = ", ".join(f"{node} {state}" for node, state in sorted(sick.items())[:8])
        more = ", ..." if len(sick) > 8 else ""
        return [], [
            f"cluster.nodes={cluster.nodes}: of the {len(states)} nodes in partition {most} {len(sick)} can't be used now "
            f"({listing}{more}): the job would wait for them"
        ]
    return [], []


def _test_only(config: RootConfig) -> tuple[bool, str]:
    """Whether sbatch would take the job, and what it says."""
    try:
        script = batch_script(config, run_folder(config))
    except SubmissionError as error:
        return False, str(error)
    command = ["sbatch", "--test-only"]
    try:
        with slurm.clean_environment():
            result = subprocess.run(
                command, input=script, capture_output=True, text=True, timeout=slurm.COMMAND_SECONDS, check=False
            )
    except subprocess.TimeoutExpired:
        return False, f"no answer within {slurm.COMMAND_SECONDS:.0f} s"
    lines = [re.sub(r"^(sbatch: |error: |allocation failure: )+", "", line) for line in result.stderr.splitlines()]
    return result.returncode == 0, "; ".join(filter(None, lines)) or f"exit code {result.returncode}"
