"""Runs the stages of a preparation as Slurm array jobs, through datatrove's executor.

Each stage is an array whose jobs wait for the stage before; the last job writes the manifest and renames the folder.
datatrove's jobs would load a pickle from the shared folder; ours are given the folder and build the same pipeline again.
"""

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datatrove.executor.slurm import SlurmPipelineExecutor
from datatrove.utils.stats import PipelineStats

from harness import slurm
from harness.data.documents.passed_over import counts, sentence
from harness.data.errors import DataError
from harness.data.preparation.finish import finish
from harness.data.preparation.job import Job, read_job
from harness.data.preparation.stages import Stage, stages
from harness.data.preparation.summary import print_summary
from harness.data.preparation.task import FAILED, describe, incomplete
from harness.run.files import read_json, write_atomic, write_json

JOBS = "slurm.json"
OPTIONS = "slurm_options.json"
FINISH = "finish"
MAX_ARRAY_SIZE = 1001
"""Slurm's own default limit for the tasks of one array; datatrove submits several arrays for more."""
DEFAULT_TIME = "24:00:00"


@dataclass(frozen=True)
class SlurmOptions:
    """What `--slurm` says."""

    partition: str
    time: str = DEFAULT_TIME
    """Limit of each array task."""
    tasks: int | None = None
    """Array tasks of a stage, at most; each then does several of the stage's tasks, one after the other. None: one each."""
    workers: int = -1
    """Array tasks at once, at most; -1: as many as Slurm has room for."""
    cpus: int = 1
    """Per array task."""
    mem_gb: int = 4
    """Memory per CPU."""
    flags: dict[str, str] = field(default_factory=dict)
    """Any other flag of sbatch."""


def parse_slurm(text: str) -> SlurmOptions:
    """`partition=cpu,time=4:00:00,tasks=50,account=x`. Raises DataError that lists everything wrong with it."""
    problems, values, flags = [], {}, {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not equals or not value or not key:
            problems.append(f"{part!r} is no key=value")
        elif key in values or key in flags:
            problems.append(f"{key} is given twice")
        elif key in ("partition", "time"):
            values[key] = value
        elif key in ("tasks", "workers", "cpus", "mem_gb"):
            if not value.isdigit() or int(value) < 1:
                problems.append(f"{key}={value}: must be a whole number from 1")
            else:
                values[key] = int(value)  # type: ignore[assignment]
        else:
            flags[key] = value
    if "partition" not in values:
        problems.append("partition is missing")
    if problems:
        raise DataError(
            f"--slurm {text}: {'; '.join(problems)}. Like partition=cpu,time=4:00:00,tasks=50,cpus=2,mem_gb=4 and any flag of sbatch."
        )
    return SlurmOptions(**values, flags=flags)  # type: ignore[arg-type]


def submit_stages(job: Job, options: SlurmOptions) -> bool:
    """Submit every stage that is not complete, each after the one before, and the last job. True: nothing was left to submit."""
    from loguru import logger

    logger.disable("datatrove")  # it tells of every submission on stderr
    todo = [stage for stage in stages(job) if incomplete(job, stage)]
    if not todo:
        return True
    if failed := _errors(job):
        print(f"{job.output}: of the earlier jobs, {failed}")
    shutil.rmtree(job.work / "errors", ignore_errors=True)
    write_json(job.folder / OPTIONS, asdict(options))
    submitted: dict[str, str] = {}
    previous: str | None = None
    try:
        for stage in todo:
            executor = _executor(job, stage, options)
            executor.depends_job_id = previous
            with slurm.clean_environment():
                executor.launch_job()
            previous = submitted[stage.name] = str(executor.job_id)
            write_json(job.folder / JOBS, submitted)
        submitted[FINISH] = _submit_finish(job, options, str(previous))
    except (OSError, subprocess.CalledProcessError) as error:
        for number in submitted.values():
            with slurm.clean_environment():
                subprocess.run(["scancel", number], capture_output=True)
        (job.folder / JOBS).unlink(missing_ok=True)
        raise DataError(f"--slurm: cannot submit: {error}") from None
    write_json(job.folder / JOBS, submitted)
    chain = ", ".join(f"{name} {number}" for name, number in submitted.items())
    print(f"{job.output}: submitted ({chain}). The same command says how far they are. Logs: {job.folder}/logs")
    if job.inputs.passed_over:
        print(f"{job.output}: {sentence(counts(job.inputs.passed_over))}")
    return False


def jobs_in_progress(partial: Path) -> str | None:
    """How far the Slurm jobs of this folder are, in a sentence; None: there are none, or all have ended."""
    try:
        submitted: dict[str, str] | None = read_json(partial / JOBS)
    except ValueError:
        raise DataError(f"{partial / JOBS}: damaged. Remove it once squeue shows no job of this preparation.") from None
    if not submitted:
        return None
    command = ["squeue", "--me", "--noheader", "--format=%F"]
    try:
        with slurm.clean_environment():
            queued = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"{partial}: Slurm jobs {', '.join(submitted.values())} were submitted, and squeue does not say whether they "
            f"run: {error}. Call this where Slurm's commands are, or remove {partial / JOBS} if they are gone."
        ) from None
    alive = sorted(set(queued) & set(submitted.values()))
    if not alive:
        return None
    job = read_job(partial)
    done = ", ".join(f"{s.name} {s.tasks - len(incomplete(job, s))}/{s.tasks}" for s in stages(job))
    failed = f"; {errors}" if (errors := _errors(job)) else ""
    return f"Slurm jobs {', '.join(alive)} are making it; tasks done: {done}{failed}"


def run_array_job(folder: Path, name: str) -> int:
    """In a job of the array: run its tasks. Returns an exit code; errors are left for the next call and printed."""
    job = read_job(folder)
    rank = int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))
    try:
        for stage in stages(job):
            if stage.name == name:
                options = SlurmOptions(**read_json(folder / OPTIONS))
                executor = _executor(job, stage, options)
                executor.stage = stage
                executor.run()
                return 0
            if left := incomplete(job, stage):
                raise DataError(
                    f"{name} needs {stage.name}, of which {len(left)} of {stage.tasks} tasks are not complete"
                )
        print_summary(str(job.output), finish(job), job.inputs)
    except (DataError, OSError) as error:
        print(f"error: {describe(error, job)}", file=sys.stderr)
        file = job.work / "errors" / name / f"{rank:05d}"
        if folder.is_dir():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, describe(error, job))
        return FAILED
    return 0


def _errors(job: Job) -> str:
    """The first error that the jobs left; empty: none."""
    files = sorted((job.work / "errors").glob("*/*"))
    return f"{len(files)} failed, the first with: {files[0].read_text(encoding='utf-8')}" if files else ""


class _Executor(SlurmPipelineExecutor):
    """datatrove's, with a job script that starts our own command, and no job that adds up stats: the last job does that.

    Every task has a pipeline of its own: datatrove gives all tasks of a job the same one, whose stats and shuffle go on
    from task to task.
    """

    command = ""
    stage: Stage

    def get_launch_file_contents(self, sbatch_args: dict[str, Any], run_script: str) -> str:
        return super().get_launch_file_contents(sbatch_args, f"srun -l -n 1 {self.command}")

    def launch_merge_stats(self) -> None:
        """Nothing."""

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> PipelineStats:
        self.pipeline = self.stage.pipeline()
        return super()._run_for_rank(rank, local_rank, node_rank)


def _executor(job: Job, stage: Stage, options: SlurmOptions) -> _Executor:
    executor = _Executor(
        [],
        tasks=stage.tasks,
        time=options.time,
        partition=options.partition,
        cpus_per_task=options.cpus,
        mem_per_cpu_gb=options.mem_gb,
        workers=options.workers,
        job_name=f"prepare-{job.output.name}-{stage.name}",
        qos="",
        sbatch_args={"kill-on-invalid-dep": "yes", **options.flags},
        max_array_size=MAX_ARRAY_SIZE,
        logging_dir=str(job.logs(stage.name)),
        tasks_per_job=-(-stage.tasks // (options.tasks or stage.tasks)),
    )
    executor.command = _command(job, stage.name)
    return executor


def _command(job: Job, name: str) -> str:
    return shlex.join([sys.executable, "-m", "harness.data.preparation.task", str(job.folder), name])


def _submit_finish(job: Job, options: SlurmOptions, previous: str | None) -> str:
    log = job.folder / "logs" / "finish.out"
    flags = {
        "parsable": "",
        "partition": options.partition,
        "time": options.time,
        "job-name": f"prepare-{job.output.name}-{FINISH}",
        "dependency": f"afterok:{previous}",
        "kill-on-invalid-dep": "yes",
        "output": str(log),
        **options.flags,
        "wrap": _command(job, FINISH),
    }
    command = ["sbatch", *(f"--{key}={value}" if value else f"--{key}" for key, value in flags.items())]
    with slurm.clean_environment():
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().partition(";")[0]
