"""One task of one stage, in a process of its own: `python -m harness.data.preparation.task FOLDER STAGE` under Slurm,
or started by harness.data.preparation.local. Everything it needs is in the folder."""

import os
import sys
import threading
from multiprocessing import connection, parent_process
from pathlib import Path

from datatrove.executor.local import LocalPipelineExecutor

from harness.data.errors import DataError
from harness.data.preparation.job import Job, read_job
from harness.data.preparation.stages import Stage, find_stage

FAILED = 2
"""Exit code of a task whose error was reported."""


def incomplete(job: Job, stage: Stage) -> list[int]:
    """Tasks of a stage that are not yet complete."""
    executor = LocalPipelineExecutor([], tasks=stage.tasks, workers=1, logging_dir=str(job.logs(stage.name)))
    return executor.get_incomplete_ranks()


def run_task(folder: Path, stage_name: str, rank: int, threads: int, log: Path, report: connection.Connection) -> None:
    """Run one task here. An error that a user can understand goes to `report`, and the process ends with `FAILED`.

    Everything that libraries print goes to `log`.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # the tokenizers library has threads of its own in each task
    fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    job = read_job(folder)
    stage = find_stage(job, stage_name)
    logs = str(job.logs(stage_name))
    try:
        executor = LocalPipelineExecutor(stage.pipeline(), tasks=stage.tasks, workers=1, logging_dir=logs)
        executor._run_for_rank(rank, local_rank=rank)
    except (DataError, OSError) as error:
        report.send(describe(error, job))
        sys.exit(FAILED)


def describe(error: DataError | OSError, job: Job) -> str:
    """An error in words for the user."""
    if isinstance(error, DataError):
        return str(error)
    reason = error.strerror or str(error)
    if error.filename and not Path(error.filename).is_relative_to(job.folder):
        return f"--input {job.input}: cannot read {error.filename}: {reason}"
    return f"--output {job.output}: cannot write {error.filename or 'to it'}: {reason}"


def _end_with_parent() -> None:
    """A task whose command was killed must not write on: another command may take over."""
    if (parent := parent_process()) is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def main() -> int:
    """One job of a Slurm array: datatrove works out which tasks are its own."""
    from harness.data.preparation.slurm import run_array_job

    return run_array_job(Path(sys.argv[1]), sys.argv[2])


if __name__ == "__main__":
    sys.exit(main())
