"""Submits the job of a run: one Slurm task, the agent, per node; or the same agent on this machine."""

import contextlib
import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from submitit import LocalExecutor, SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from harness import recovery, slurm
from harness.agent.task import AgentTask
from harness.config.check import time_limit_minutes
from harness.config.layout import cpus_per_node
from harness.config.schema import ClusterKind, RootConfig
from harness.run.exit_codes import BATCH_CODES
from harness.run.folder import RunFolder

FALLBACK = Path(recovery.__file__).with_name("fallback.sh")
"""Shell function for hosts on which Python can't start; part of the batch script's text, since such a host may not see our files."""


class SubmissionError(Exception):
    """The job could not be submitted; the message says why in the scheduler's words."""


def batch_script(config: RootConfig, run: RunFolder) -> str:
    """The exact text that sbatch gets. Raises SubmissionError for parameters that submitit refuses."""
    executor = _slurm_executor(config, run, require_client=False)
    return executor._make_submission_file_text(executor._submitit_command_str, uid="")


def submit(config: RootConfig, run: RunFolder) -> str:
    """Submit the run's job and return its id: Slurm's, or the controller's process id for `cluster=local`.

    Raises SubmissionError, SlurmError, or OSError that names what could not be written."""
    try:
        return _submit(config, run)
    except OSError as error:
        raise error if error.filename else OSError(error.errno, error.strerror, str(run.submit_dir)) from error


def _submit(config: RootConfig, run: RunFolder) -> str:
    task = AgentTask(str(run.path))
    if config.cluster.kind is ClusterKind.local:
        return _submit_local(config, run, task)
    executor = _slurm_executor(config, run, require_client=True)
    try:
        with slurm.clean_environment():
            job = executor.submit(task)
    except (FailedJobError, FailedSubmissionError) as error:
        raise SubmissionError(f"sbatch refused the job: {_scheduler_words(error)}") from error
    return str(job.job_id)


def is_active(run: RunFolder, kind: ClusterKind, job_id: str) -> str | None:
    """In what state the run's job still is, or None once it is over. Raises SlurmError where Slurm does not answer."""
    if kind is ClusterKind.local:
        return "RUNNING" if _is_controller(job_id, run.submit_dir) else None
    found = slurm.job(job_id)
    return found.state if found and found.active else None


def _slurm_executor(config: RootConfig, run: RunFolder, require_client: bool) -> SlurmExecutor:
    executor = _Executor(folder=run.submit_dir) if require_client else _OfflineExecutor(folder=run.submit_dir)
    executor.update_parameters(**slurm_parameters(config, run))
    return executor


class _Executor(SlurmExecutor):
    """submitit's, with our own command in the batch script instead of one that loads a pickle."""

    @property
    def _submitit_command_str(self) -> str:
        run_path = Path(self.folder).parent
        return f"{self.python} -u -m harness.recovery.batch {shlex.quote(str(run_path))}"


class _OfflineExecutor(_Executor):
    """Renders the batch script without asking whether Slurm is installed: a dry run works on machines without it."""

    @classmethod
    def affinity(cls) -> int:
        return 1


def slurm_parameters(config: RootConfig, run: RunFolder) -> dict[str, Any]:
    """submitit's parameters for this config."""
    cluster = config.cluster
    cpus = cpus_per_node(config)
    flags = {
        key.replace("_", "-"): True if value.lower() == "true" else value
        for key, value in cluster.sbatch.items()
        if value is not None and value.lower() != "false"
    }
    parameters: dict[str, Any] = {
        "job_name": config.run.name,
        "nodes": cluster.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": cpus,
        "time": cluster.time,
        "partition": cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "exclude": ",".join(sorted({*cluster.exclude, *run.excluded_nodes()})) or None,
        "signal_delay_s": cluster.signal_delay_seconds,
        "setup": [*cluster.setup, FALLBACK.read_text()],
        "teardown": [_after_python(config, run)],
        "stderr_to_stdout": True,
        "wckey": None,
        "use_srun": False,  # our command starts one agent per node itself
        "additional_parameters": {"requeue": True, **flags},
    }
    if cluster.gpus_per_node:
        parameters["gpus_per_node"] = cluster.gpus_per_node
    return parameters


def _after_python(config: RootConfig, run: RunFolder) -> str:
    """Shell line: end with Python's status if it is one of those that it ends with on purpose; else act in its place."""
    on_purpose = "|".join(str(code) for code in sorted({*BATCH_CODES, 128 + signal.SIGTERM}))
    limit = config.cluster.max_restarts_without_progress
    fallback = f'harness_fallback "$status" {shlex.quote(str(run.path))} {limit}'
    return f'status=$?; case "$status" in {on_purpose}) exit "$status" ;; *) {fallback} ;; esac'


def _submit_local(config: RootConfig, run: RunFolder, task: AgentTask) -> str:
    executor = LocalExecutor(folder=run.submit_dir)
    executor.update_parameters(
        timeout_min=time_limit_minutes(config.cluster.time),
        signal_delay_s=config.cluster.signal_delay_seconds,
        gpus_per_node=config.cluster.gpus_per_node,
        visible_gpus=visible_gpus(config.cluster.gpus_per_node, os.environ.get("CUDA_VISIBLE_DEVICES")),
        tasks_per_node=1,
        stderr_to_stdout=True,
        setup=config.cluster.setup,
    )
    with slurm.clean_environment(), _detached(run.submit_dir / "controller.log"):
        return str(executor.submit(task).job_id)


def visible_gpus(wanted: int, visible: str | None) -> tuple[int, ...]:
    """Numbers of the GPUs that a run on this machine may take, of those in `visible` (CUDA_VISIBLE_DEVICES; None: all).

    An empty tuple, and nothing else, is submitit's word for "no preference": it takes the first ones of the machine. Raises SubmissionError where there are too few, or
    where they are not named by number, which is all that submitit passes on.
    """
    if wanted == 0 or visible is None:
        return ()
    names = [name.strip() for name in visible.split(",") if name.strip()]
    if len(names) < wanted:
        raise SubmissionError(
            f"cluster.gpus_per_node={wanted}: CUDA_VISIBLE_DEVICES={visible} shows {len(names)}; ask for fewer, or unset it"
        )
    if not all(name.isdecimal() for name in names):
        raise SubmissionError(f"CUDA_VISIBLE_DEVICES={visible}: cluster=local needs the GPUs' numbers, as in 0,1")
    return tuple(int(name) for name in names[:wanted])


@contextlib.contextmanager
def _detached(log: Path) -> Iterator[None]:
    """Processes started inside outlive our terminal: they write to `log` and ignore its Ctrl-C and hang-up."""
    signals = (signal.SIGINT, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in signals]
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(fd) for fd in (0, 1, 2)]
    null, out = os.open(os.devnull, os.O_RDONLY), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        for fd, replacement in ((0, null), (1, out), (2, out)):
            os.dup2(replacement, fd)
        yield
    finally:
        for fd, original in zip((0, 1, 2), saved, strict=True):
            os.dup2(original, fd)
            os.close(original)
        os.close(null)
        os.close(out)
        for number, handler in zip(signals, handlers, strict=True):
            signal.signal(number, handler)


def _is_controller(pid: str, submit_dir: Path) -> bool:
    """Whether `pid` is alive and submitit's local controller of this very run: numbers come round again, and begin anew
    in every container."""
    try:
        words = Path(f"/proc/{int(pid)}/cmdline").read_text(errors="surrogateescape").rstrip("\0").split("\0")
        if words[1:2] == ["-c"]:  # with cluster.setup it is a shell, and ours its last command
            words = shlex.split(words[-1])
    except (OSError, ValueError):
        return False
    return words[-3:-1] == ["-m", "submitit.local._local"] and Path(words[-1]).resolve() == submit_dir.resolve()


def _scheduler_words(error: Exception) -> str:
    text = " ".join(str(error).split())
    said = re.search(r"sbatch: error: (.*)", text)
    return said.group(1) if said else text
