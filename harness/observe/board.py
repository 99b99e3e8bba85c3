"""The board: a small mmap'd file per rank through which a trainer tells its agent how it is doing.

The trainer writes 8-byte floats in place, which costs well under a microsecond and never blocks; the agent reads them
at scrape time. No locks: each cell has one writer, and an aligned 8-byte store is atomic on the machines we run on.
The file survives the rank: counters go on across restarts inside one attempt, and a dead rank's last words can be read.
"""

import errno
import json
import mmap
import os
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path

from harness.system.processes import Process

READ_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds of harness_data_read_seconds; part of the metrics contract."""
STEP_BUCKETS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 7.5, 10.0, 15.0, 30.0, 60.0, 120.0)
CKPT_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
GC_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0)

PHASES = ("data_wait", "forward_backward", "comm_wait", "optimizer", "checkpoint", "eval", "other")
SAVE_STAGES = ("stage", "write", "commit")
RESTORE_STAGES = ("read", "verify")

MAX_READ_KEYS = 256
"""Most (mount, source) pairs of one rank; SmolLM3's largest stage has 57 sources, each perhaps with a replica or two."""
MAX_IN_FLIGHT = 64
"""Most reads that one rank has under way at once."""


class RankState(IntEnum):
    """What a rank is doing, as the agent needs to know it."""

    starting = 0
    restoring = 1
    training = 2
    stopped = 3
    """Saved on request and exited: the run is not finished."""
    finished = 4
    """All steps are done, or the run has stopped early; saved."""


class Activity(IntEnum):
    """What a rank's main thread is at. How long each may show no sign of progress: `harness.agent.hang`."""

    starting = 0
    """Joining the others, opening the data, building the model."""
    restoring = 1
    """Reading a checkpoint, or initialising the weights."""
    compiling = 2
    """The first step or the first batch of a validation, in which kernels are compiled."""
    waiting_for_data = 3
    stepping = 4
    validating = 5
    saving = 6
    """Writing a checkpoint, copying what a save in the background writes, or waiting for room for the last one."""
    recording = 7
    """A profile or memory snapshot that somebody has asked for."""
    ending = 8
    """All is saved; what is left is to part from the other ranks and to exit."""


SCALARS = (
    "pid", "pid_started", "restart", "state", "step", "steps_total", "tokens_total", "last_step_time", "start_time",
    "loss", "grad_norm", "learning_rate", "nonfinite_total", "skipped_total", "planned_pause",
    "expected_tokens_per_second", "expected_step_seconds", "mfu", "compute_seconds", "comm_wait_seconds",
    "queue_batches", "loader_cpu_seconds", "ckpt_bytes_total", "ckpt_failures_total", "ckpt_last_success_time",
    "ckpt_last_success_step", "stop_request", "activity", "activity_since", "progress_time", "pause_ends",
    "lines_waiting", "lines_lost",
)  # fmt: skip
VECTORS = {
    "phase_seconds": len(PHASES),
    "read_bytes": MAX_READ_KEYS,
    "slow_reads": MAX_READ_KEYS,
    "read_errors": MAX_READ_KEYS,
    "last_errno": MAX_READ_KEYS,
    "in_flight_since": MAX_IN_FLIGHT,  # Unix time, 0: free
    "in_flight_key": MAX_IN_FLIGHT,
}
HISTOGRAMS = {  # name -> (rows, upper bounds)
    "step": (1, STEP_BUCKETS),
    "read": (MAX_READ_KEYS, READ_BUCKETS),
    "save": (len(SAVE_STAGES), CKPT_BUCKETS),
    "restore": (len(RESTORE_STAGES), CKPT_BUCKETS),
    "gc": (3, GC_BUCKETS),
}
MAGIC = 7301003.0
"""First cell of every board; changes with the layout, so that an agent never misreads another version's board."""


def _layout() -> tuple[dict[str, int], int]:
    offsets, at = {}, 1
    for name in SCALARS:
        offsets[name] = at
        at += 1
    for name, length in VECTORS.items():
        offsets[name] = at
        at += length
    for name, (rows, bounds) in HISTOGRAMS.items():
        offsets[f"{name}_histogram"] = at
        at += rows * (len(bounds) + 2)  # per row: a cell per bucket, one for +Inf, the sum
    return offsets, at


OFFSETS, CELLS = _layout()
BOARD_BYTES = CELLS * 8


@dataclass(frozen=True)
class ReadKey:
    """What reads are told apart by: the mount point that serves them and the data source."""

    mount: str
    source: str


@dataclass(frozen=True)
class Histogram:
    """Counts per bucket (not cumulative, the last one is +Inf) and the sum of the observed values."""

    bounds: tuple[float, ...]
    counts: list[float]
    sum: float


def board_path(folder: Path, rank: int) -> Path:
    """The board of global rank `rank` in an agent's board folder."""
    return folder / f"rank-{rank:05d}.board"


class Board:
    """One rank's cells: `open_for_write` in the trainer, `open_for_read` in the agent, which sets only `stop_request`."""

    def __init__(self, path: Path, cells: "memoryview[float]") -> None:
        self.path = path
        self._cells = cells

    @classmethod
    def open_for_write(cls, path: Path) -> "Board":
        """Map `path`, creating it if need be; counters of an earlier process of this rank are kept.

        Raises OSError if there is no room for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            _allocate(fd, BOARD_BYTES)
            board = cls(path, memoryview(mmap.mmap(fd, BOARD_BYTES)).cast("d"))
        finally:
            os.close(fd)
        if board._cells[0] != MAGIC:
            board._cells[:] = memoryview(bytes(BOARD_BYTES)).cast("d")
            board._cells[0] = MAGIC
        return board

    @classmethod
    def open_for_read(cls, path: Path) -> "Board":
        """Map an existing board. Raises FileNotFoundError, or ValueError for anything but a board of this version."""
        fd = os.open(path, os.O_RDWR)
        try:
            if os.fstat(fd).st_size != BOARD_BYTES:
                raise ValueError(f"{path} is not a board of this version")
            board = cls(path, memoryview(mmap.mmap(fd, BOARD_BYTES)).cast("d"))
        finally:
            os.close(fd)
        if board._cells[0] != MAGIC:
            raise ValueError(f"{path} is not a board of this version")
        return board

    def begin(self, activity: Activity) -> None:
        """From now on the rank's main thread does this, which is progress too."""
        now = time.time()
        self.set("activity", activity)
        self.set("activity_since", now)
        self.set("progress_time", now)

    def progress(self) -> None:
        """The rank has got further in what it does: a batch validated, a file checked, a tensor read."""
        self.set("progress_time", time.time())

    @property
    def process(self) -> Process:
        """The process that has written here last."""
        return Process(int(self.get("pid")), self.get("pid_started"))

    def get(self, name: str, index: int = 0) -> float:
        return self._cells[OFFSETS[name] + index]

    def set(self, name: str, value: float, index: int = 0) -> None:
        self._cells[OFFSETS[name] + index] = value

    def add(self, name: str, value: float, index: int = 0) -> None:
        self._cells[OFFSETS[name] + index] += value

    def observe(self, histogram: str, value: float, row: int = 0) -> None:
        """Count `value` (seconds) in the row's bucket and add it to the row's sum."""
        bounds = HISTOGRAMS[histogram][1]
        at = OFFSETS[f"{histogram}_histogram"] + row * (len(bounds) + 2)
        self._cells[at + bisect_left(bounds, value)] += 1
        self._cells[at + len(bounds) + 1] += value

    def histogram(self, name: str, row: int = 0) -> Histogram:
        bounds = HISTOGRAMS[name][1]
        at = OFFSETS[f"{name}_histogram"] + row * (len(bounds) + 2)
        cells = [float(cell) for cell in self._cells[at : at + len(bounds) + 2]]
        return Histogram(bounds, list(cells[:-1]), cells[-1])

    def write_read_keys(self, keys: list[ReadKey]) -> None:
        """Name the read rows, atomically, beside the board. Raises ValueError for more than MAX_READ_KEYS."""
        if len(keys) > MAX_READ_KEYS:
            raise ValueError(f"{len(keys)} pairs of mount and source; at most {MAX_READ_KEYS} can be told apart")
        temporary = self.path.with_suffix(".keys.tmp")
        temporary.write_text(json.dumps([asdict(key) for key in keys]))
        os.replace(temporary, self.path.with_suffix(".keys"))

    def read_keys(self) -> list[ReadKey]:
        """The names of the read rows; empty until the trainer has opened its data."""
        try:
            return [ReadKey(**key) for key in json.loads(self.path.with_suffix(".keys").read_text())]
        except (FileNotFoundError, ValueError):
            return []


def _allocate(fd: int, size: int) -> None:
    """Give the file its size and its room: a page of a sparse file that a full tmpfs can't back kills who touches it."""
    os.ftruncate(fd, size)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that can't reserve room
            raise
