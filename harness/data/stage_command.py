"""`python -m harness.data stage`: copies what a run needs to this node's disk, or says how much and how long that would be."""

import argparse
import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.config.arguments import add_overrides
from harness.data.errors import DataError
from harness.system.output import keep_printing

if TYPE_CHECKING:
    from harness.config.schema import RootConfig
    from harness.data.stage import Stager
    from harness.data.stage_peers import Peers, PeerServer
    from harness.data.stage_plan import StageFile
    from harness.data.stage_status import StageStatus

DONE, FAILED = 0, 1
LOOK_SECONDS = 10.0
"""How often one that serves looks whether its copies are still there, and everyone tells the run how far it is."""
LINE_SECONDS = 10.0
"""Between two lines of progress where nobody sits at a terminal."""


def add_stage(commands: Any) -> None:
    """Add `stage` to the commands of `python -m harness.data`."""
    parser = commands.add_parser(
        "stage",
        help="copy what a run needs to this node's disk",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Copy what a run needs to data.stage_to on this node, as the run itself would: a spare node that has run\n"
        "this is ready. What is complete is not copied again; what was interrupted goes on where it was.",
        epilog="""  python -m harness.data stage +exp=smol3b data.stage_to=/scratch/data --dry-run
  srun -N 49 --ntasks-per-node=1 python -m harness.data stage +exp=smol3b data.stage_to=/scratch/data
  python -m harness.data stage --run runs/smol3b --serve 10.0.0.49     on a spare: ready it for that run, and keep it so

Exit code: 0 all is there, 1 something is not (no room, damaged, unreadable), 2 bad config.""",
    )
    add_overrides(parser)
    parser.add_argument(
        "--run", dest="run_folder", type=Path, metavar="FOLDER", help="a run's folder instead of overrides"
    )
    parser.add_argument("--dry-run", action="store_true", help="read samples, say how much and how long, copy nothing")
    parser.add_argument(
        "--serve",
        metavar="ADDRESS",
        help="fetch from and serve to the run's other nodes at this address of the node's own; goes on until it is ended",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Stage; the exit code. Raises DataError."""
    if "HARNESS_ATTEMPT" in os.environ:  # started by an agent: a full disk under its log must not stop the copying
        keep_printing()
    job = _job(options)
    if options.dry_run:
        from harness.data.stage_estimate import estimate
        from harness.data.stage_plan import plan_files

        print(estimate(job.config.data, plan_files(job.config.data, job.stage_to, job.step)), flush=True)
        return DONE
    return _Staging(job, options.serve).run()


@dataclass(frozen=True)
class _Job:
    """The run to stage for."""

    config: "RootConfig"
    folder: Path
    """The run's folder, which need not be there."""
    step: int
    """Steps that it has done."""

    @property
    def stage_to(self) -> Path:
        assert self.config.data.stage_to is not None
        return Path(self.config.data.stage_to).expanduser().absolute()


def _job(options: argparse.Namespace) -> _Job:
    from harness.data.composed import composed
    from harness.run.folder import RunFolder, RunFolderError

    if options.run_folder is None:
        config = composed(options.overrides, options.config_dir)
    elif options.overrides:
        raise DataError(f"--run {options.run_folder}: has a config of its own; leave out {' '.join(options.overrides)}")
    else:
        try:
            config = RunFolder(options.run_folder).load_config()
        except RunFolderError as error:
            raise DataError(str(error)) from None
    if config.data.stage_to is None:
        raise DataError(
            "data.stage_to=null: nothing is staged. Give a folder on the node's own disk: data.stage_to=/scratch/data"
        )
    run = RunFolder((options.run_folder or Path(config.runs_dir) / config.run.name).absolute())
    return _Job(config, run.path, run.last_step())


def _files(job: _Job) -> "list[StageFile]":
    """In the order in which they are to be copied."""
    from harness.config.schema import StageWhen
    from harness.data.order import open_order
    from harness.data.origins import is_url
    from harness.data.skips import Skips
    from harness.data.stage_plan import in_order_of_use, plan_files, shuffled

    data = job.config.data
    files = plan_files(data, job.stage_to, job.step)
    if data.stage_when is StageWhen.before or any(is_url(source.path) for source in data.sources.values()):
        return shuffled(files, _node()) if job.config.cluster.nodes > 1 and data.stage_from_peers else files
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan has told them
        order = open_order(data, job.config.train.global_batch_size)
    batches_done = Skips(job.config.train.skip).batch_of_step(job.step + 1) - 1
    return in_order_of_use(files, order, batches_done)


def _node() -> str:
    return os.environ.get("HARNESS_NODE") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()


class _Staging:
    """One run of the stager, with progress, peers and signals."""

    def __init__(self, job: _Job, serve: str | None) -> None:
        self._job, self._serve = job, serve
        self._ended = threading.Event()
        self._said = self._published = float("-inf")

    def run(self) -> int:
        from harness.data.stage import make_stage_folder
        from harness.data.stage_status import StageState, StageStatus, status_path, write_status

        job, data = self._job, self._job.config.data
        self._ledger("stage_start", stage_to=str(job.stage_to), when=data.stage_when.value)
        try:
            make_stage_folder(job.stage_to)
            path = status_path(job.stage_to, job.config.run.name, _node())
            with contextlib.suppress(OSError):  # a full disk: the next status may find room
                write_status(path, StageStatus(pid=os.getpid(), started=time.time(), updated=time.time()))
            try:
                return self._stage(_files(job), path)
            except DataError as error:
                problems = str(error).splitlines()
                with contextlib.suppress(OSError):
                    write_status(
                        path, StageStatus(StageState.failed, os.getpid(), updated=time.time(), problems=problems)
                    )
                raise
        except DataError as error:
            self._ledger("stage_failed", why=str(error), bytes=0, seconds=0.0)
            raise

    def _stage(self, files: "list[StageFile]", path: Path) -> int:
        from harness.data.stage import Stager

        job, data = self._job, self._job.config.data
        server, peers = self._meet(files)
        stager = Stager(
            files,
            job.stage_to,
            path,
            threads=data.stage_threads,
            keep_free=data.stage_keep_free_bytes,
            bytes_per_second=data.stage_bytes_per_second,
            peers=peers,
        )
        self._obey_signals(stager)
        status = stager.run(self._tell)
        self._tell_end(status)
        if server is not None:
            while not self._ended.wait(LOOK_SECONDS):
                with contextlib.suppress(OSError):  # a full disk: the next look may do better
                    self._publish(stager.look_again())
            server.close()
        return DONE if status.ready else FAILED

    def _meet(self, files: "list[StageFile]") -> "tuple[PeerServer | None, list[Peers]]":
        """Our server for the other nodes, and them; nothing where it is not asked for or can't be."""
        from harness.data.stage_peers import Peers, PeerServer, peers_dir, run_token

        if self._serve is None:
            return None, []
        folder = peers_dir(self._job.folder)
        try:
            token = run_token(folder)
            return PeerServer(files, folder, _node(), self._serve, token), [Peers(folder, _node(), token)]
        except OSError as error:  # staging works without, only slower
            print(f"--serve {self._serve}: not exchanging files with other nodes: {error}", flush=True)
            return None, []

    def _obey_signals(self, stager: "Stager") -> None:
        def end(number: int, frame: FrameType | None) -> None:
            stager.stop()
            self._ended.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, end)

    def _tell(self, status: "StageStatus") -> None:
        now = time.monotonic()
        if status.over or now - self._published >= LOOK_SECONDS:
            self._published = now
            self._publish(status)
        if status.over:
            return
        if sys.stdout.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{status.text[:width]:<{width}}", end="", flush=True)
        elif now - self._said >= LINE_SECONDS:
            print(f"{_node()}: {status.text}", flush=True)
            self._said = now

    def _tell_end(self, status: "StageStatus") -> None:
        from harness.data.stage_status import StageState

        end = "\r\033[K" if sys.stdout.isatty() else ""
        print(f"{end}{_node()}: {status.state}: {status.text}", flush=True)
        for problem in status.problems:
            print(f"  - {problem}", flush=True)
        facts: dict[str, Any] = {
            "bytes": status.bytes_copied,
            "seconds": round(status.seconds, 1),
            "files": status.files_staged,
            "bytes_from_peers": status.bytes_from_peers,
        }
        if status.problems:
            facts["why"] = "; ".join(status.problems)
        if status.files_left:
            facts |= {"files_left": status.files_left, "bytes_missing": status.bytes_missing}
        good = status.state in (StageState.done, StageState.partial)
        self._ledger("stage_done" if good else "stage_failed", state=status.state.value, **facts)

    def _publish(self, status: "StageStatus") -> None:
        """Tell the run, where there is one: its head node exports how far the spares are."""
        from harness.data.stage_status import write_status
        from harness.run.folder import RunFolder

        run = RunFolder(self._job.folder)
        if run.config_path.exists():
            with contextlib.suppress(OSError):  # shared storage that is full or away must not stop the copying
                run.staging_dir.mkdir(exist_ok=True)
                write_status(run.staging_dir / f"{_node()}.json", status)

    def _ledger(self, event: str, **facts: Any) -> None:
        """A line in the run's ledger, where there is a run already: the agents' stagers write there, and those of spares."""
        from harness.run.folder import RunFolder

        run = RunFolder(self._job.folder)
        if run.config_path.exists():
            attempt = os.environ.get("HARNESS_ATTEMPT")
            run.ledger(int(attempt) if attempt else None, _node()).write(event, **facts)
