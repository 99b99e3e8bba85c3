"""Runs the stages of a preparation on this machine: a process for each task, a number of them at once."""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from harness.data.errors import DataError
from harness.data.preparation.job import Job
from harness.data.preparation.stages import Stage, stages
from harness.data.preparation.steps import progress_done
from harness.data.preparation.tallies import read_tallies, refuse_if_nothing_is_left
from harness.data.preparation.task import FAILED, incomplete, run_task

TITLES = {"tokenise": "tokenising", "tokenizer": "training tokenizer", "filter": "filtering", "evals": "indexing evals"}


def run_stages(job: Job, workers: int | None) -> None:
    """Run all that is not yet complete, with a progress bar for each stage. Raises DataError for the first task that fails."""
    for stage in stages(job):
        todo = incomplete(job, stage)
        if todo:
            _run_stage(job, stage, todo, workers)
        if stage.name == "filter":
            refuse_if_nothing_is_left(job)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass
class _Running:
    """A task at work."""

    rank: int
    process: BaseProcess
    report: connection.Connection


def _run_stage(job: Job, stage: Stage, todo: list[int], workers: int | None) -> None:
    at_once = min(len(todo), workers or cores())
    log = job.folder / "logs" / "prepare.log"
    log.parent.mkdir(exist_ok=True)
    running: list[_Running] = []
    with _progress(job, stage):
        try:
            waiting = iter(todo)
            while True:
                while len(running) < at_once and (rank := next(waiting, None)) is not None:
                    running.append(_start(job, stage, rank, max(1, cores() // at_once), log))
                if not running:
                    return
                connection.wait([task.process.sentinel for task in running])
                for task in [task for task in running if task.process.exitcode is not None]:
                    running.remove(task)
                    _refuse_failure(stage, task, log)
        finally:
            for task in running:
                task.process.kill()
                task.process.join()


def _start(job: Job, stage: Stage, rank: int, threads: int, log: Path) -> _Running:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.data.preparation.task", *(["spacy"] if job.recipe.needs_words else [])])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run_task, args=(job.folder, stage.name, rank, threads, log, sender), daemon=True)
    process.start()
    sender.close()
    return _Running(rank, process, receiver)


def _refuse_failure(stage: Stage, task: _Running, log: Path) -> None:
    """Raise DataError unless the task ended well."""
    code, where = task.process.exitcode or 0, f"task {task.rank} of {stage.name}"
    if code == FAILED:
        with contextlib.suppress(EOFError):
            raise DataError(task.report.recv())
    if code < 0:
        raise DataError(
            f"{where} was killed by signal {-code}. Short of memory? Try fewer --workers; the same command goes on from here. "
            "A long document takes 0.2 GB per million characters, and a text file is one document."
        )
    if code:
        raise DataError(f"{where} failed: {_last_error(log)} (see {log})")
    task.report.close()


def _last_error(log: Path) -> str:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it printed nothing"


@contextlib.contextmanager
def _progress(job: Job, stage: Stage) -> Iterator[None]:
    """A bar that moves while the tasks work, and to its end when they succeed."""
    folder, total, unit = job.progress(stage.name), job.inputs.total, job.inputs.unit
    if stage.progress == "tasks":
        total, unit = stage.tasks, " tasks"
    elif stage.progress == "characters":
        total, unit = None, " characters"
    elif stage.progress == "documents":
        total, unit = read_tallies(job, ["filter"])[-1].documents, " documents"
    finished = threading.Event()

    def done() -> int:
        if stage.progress == "tasks":
            return stage.tasks - len(incomplete(job, stage))
        return progress_done(folder)

    def poll() -> None:
        while not finished.wait(0.2):
            bar.update(done() - bar.n)

    with tqdm(total=total, desc=TITLES.get(stage.name, stage.name), unit=unit, unit_scale=True) as bar:
        thread = threading.Thread(target=poll, daemon=True)
        thread.start()
        try:
            yield
        finally:
            finished.set()
            thread.join()
        bar.update((bar.total or done()) - bar.n)
