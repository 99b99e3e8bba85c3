"""Writes checkpoints that are complete or absent.

Every rank writes its part into a folder with a temporary name and checksums it; rank 0 gathers the list of files, writes
the manifest last and gives the folder its final name. Whatever happens before that leaves no checkpoint, and training
goes on: the next cadence tries again.
"""

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.api import CheckpointException

from harness.checkpoint import folders
from harness.checkpoint.manifest import FileRecord, Manifest, describe_file
from harness.checkpoint.reports import Reports, SaveResult
from harness.checkpoint.state import State, copy_to_cpu
from harness.checkpoint.storage import METADATA, TensorWriter, WatchedPlanner
from harness.data.lineage import Lineage
from harness.optim.schedule import Curve
from harness.run.folder import RunFolder


class Saver:
    """Saves one run's checkpoints, at most one at a time. Every method is called by all ranks at the same step."""

    def __init__(
        self,
        run: RunFolder,
        *,
        attempt: int,
        group: dist.ProcessGroup,
        identity: dict[str, Any],
        keep: int | None,
        in_background: bool,
        reports: Reports,
        lineage: Lineage | None = None,
        curve: Curve | None = None,
    ) -> None:
        """`group`: a gloo group of all ranks that nothing else uses, since a background save talks in it at any time.

        `lineage`: batches that the run leaves out and changes of its mixture; a checkpoint says which lie behind it.
        `curve`: the learning rate; a checkpoint says where on it the run was, and the last one before a decay is kept.
        """
        self._run = run
        self._attempt = attempt
        self.group = group
        self.identity = identity
        self._keep = keep
        self._in_background = in_background
        self._blocks = not in_background
        """Whether the rank's main thread waits for the save: its progress is then the rank's."""
        self._reports = reports
        self._lineage = lineage or Lineage()
        self._curve = curve
        self._thread: threading.Thread | None = None
        self._result: SaveResult | None = None
        self._died: BaseException | None = None

    def save(self, state: State, step: int, tokens: int) -> None:
        """Save `state` after `step` steps and `tokens` tokens. Waits for an earlier save that is still under way.

        In the background: returns once the state is copied. Otherwise: once the checkpoint is complete or has failed.
        """
        self.wait()
        started = time.perf_counter()
        if not self._in_background:
            self._run_save(state, step, tokens, 0.0)
            return
        copy = copy_to_cpu(state)
        staged = time.perf_counter() - started
        self._thread = threading.Thread(
            target=self._run_save, args=(copy, step, tokens, staged), name=f"save-{step}", daemon=True
        )
        self._thread.start()

    def result(self) -> SaveResult | None:
        """How the newest finished save ended; None before the first and while one is under way."""
        if self._thread is not None and self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> SaveResult | None:
        """Wait for the save under way, if any; how the newest one ended. Raises what killed it where a rank was lost."""
        if self._thread is not None:
            self._blocks = True
            self._thread.join()
            self._blocks = not self._in_background
            self._thread = None
        if self._died is not None:
            raise RuntimeError("saving stopped in the middle") from self._died
        return self._result

    def _run_save(self, state: State, step: int, tokens: int, staged: float) -> None:
        try:
            self._result = None
            self._result = self._save(state, step, tokens, staged)
            self._reports.saved(self._result)
        except BaseException as error:  # must surface in the main thread: another rank is gone, or a bug
            self._died = error
            if not self._in_background:
                raise

    def _save(self, state: State, step: int, tokens: int, staged: float) -> SaveResult:
        checkpoints = self._run.checkpoints_dir
        folder = folders.unfinished_path(checkpoints, step, self._attempt)
        started = time.perf_counter()
        error, files = self._write(state, folder)
        written = time.perf_counter()
        self._progress()
        gathered: list[tuple[str | None, list[FileRecord]]] = [(None, [])] * dist.get_world_size(self.group)
        dist.all_gather_object(gathered, (error, files), group=self.group)
        error = next((found for found, _ in gathered if found is not None), None)
        everything = [record for _, records in gathered for record in records]

        def commit() -> None:
            self._commit(folder, step, tokens, sorted(everything, key=lambda record: record.name))

        outcome: list[Any] = [None]
        if self._reports.rank == 0:
            outcome[0] = self._finish(folder, step, error, commit)
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        error, fenced = outcome[0]
        return SaveResult(
            step=step,
            error=error,
            fenced=fenced,
            seconds={"stage": staged, "write": written - started, "commit": time.perf_counter() - written},
            size=sum(record.size for record in everything),
            own_size=sum(record.size for record in files),
        )

    def _write(self, state: State, folder: Path) -> tuple[str | None, list[FileRecord]]:
        """Write and checksum this rank's part. Collective: a failure on one rank ends it on all."""
        rank = self._reports.rank
        try:
            self._run.path.stat()  # a mount that has gone: torch would make the folder on the disk below it
            planner = WatchedPlanner(self._progress)
            dcp_save(state, storage_writer=TensorWriter(folder), planner=planner, process_group=self.group)
            names = [path for path in folder.glob(f"__{rank}_*") if path.is_file()]
            if rank == 0:
                names.append(folder / METADATA)
            return None, [describe_file(path) for path in names]
        except CheckpointException as error:
            return _first_failure(error), []
        except OSError as error:
            return _describe(rank, error), []

    def _finish(
        self, folder: Path, step: int, error: str | None, commit: Callable[[], None]
    ) -> tuple[str | None, bool]:
        """Rank 0: make it a checkpoint, or leave nothing. (why not, whether a newer attempt forbids it)."""
        fenced = False
        try:
            newest = self._run.newest_attempt()
            fenced = newest is not None and newest > self._attempt
            if fenced:
                error = f"attempt {newest} of this run has started; attempt {self._attempt} must not write any more"
            if error is None:
                commit()
        except OSError as failure:  # ESTALE from a listing, as well as a full disk
            error = _describe(0, failure)
        if error is None:
            self._tidy(step)
        else:
            shutil.rmtree(folder, ignore_errors=True)  # or what is half written would fill the disk itself
        return error, fenced

    def _tidy(self, step: int) -> None:
        """Remove what the new checkpoint replaces. It is complete, whatever fails here."""
        checkpoints = self._run.checkpoints_dir
        try:
            folders.prune(checkpoints, step, self._keep, self._curve.plateau_end if self._curve else None)
            folders.point_latest(checkpoints, step)  # in case there was no room for it before
        except OSError as error:
            print(f"checkpoint of step {step} is complete, but {checkpoints} can't be tidied up: {error}", flush=True)

    def _commit(self, folder: Path, step: int, tokens: int, files: list[FileRecord]) -> None:
        skips, changes = self._lineage.history(step)
        curve = self._curve
        manifest = Manifest(
            step=step,
            tokens=tokens,
            world_size=dist.get_world_size(self.group),
            attempt=self._attempt,
            identity=self.identity,
            files=tuple(files),
            torch=torch.__version__,
            time=time.time(),
            skips=tuple(skips),
            changes=tuple(changes),
            lr=curve.rate(step) if curve else None,
            lr_share=curve.share(step) if curve else None,
        )
        manifest.write(folder)
        folders.publish(folder, self._run.checkpoints_dir, step)

    def _progress(self) -> None:
        if self._blocks:
            self._reports.board.progress()


def _first_failure(error: CheckpointException) -> str:
    rank, (cause, _) = next(iter(error.failures.items()))
    return _describe(rank, cause)


def _describe(rank: int, error: BaseException) -> str:
    text = str(error).splitlines()[0] if str(error) else ""
    return f"rank {rank}: {type(error).__name__}: {text}"
