"""Writes to the file system of `runs_dir` and reads back, and holds its free space against what the run will keep."""

import hashlib
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from harness.launch.launch import run_folder
from harness.plan import Plan
from harness.preflight.finding import Finding, Subject
from harness.text import bytes_text

PROBE_BYTES = 64 << 20
BLOCK_BYTES = 4 << 20
SLOW_BYTES_PER_SECOND = 50e6
"""A file system slower than this for one writer makes saving a checkpoint a matter of many minutes."""


@dataclass(frozen=True)
class Speeds:
    """Bytes per second of one writer and one reader."""

    write: float
    read: float


def check_storage(subject: Subject) -> Finding:
    """Can it be written, does it hold the checkpoints, is what comes back what was written, how fast."""
    folder = existing_parent(Path(subject.config.runs_dir))
    try:
        stat = os.statvfs(folder)
        speeds = probe(folder)
    except OSError as error:
        return Finding(
            f"can't write to {folder}",
            failures=(
                f"runs_dir={subject.config.runs_dir}: can't write {bytes_text(PROBE_BYTES)} to {folder} ({error.strerror}); set "
                "runs_dir to a folder with room that you may write to and that every node sees",
            ),
        )
    if speeds is None:
        return Finding(
            f"{folder} gives back other bytes than were written",
            failures=(
                f"runs_dir={subject.config.runs_dir}: {folder} gave back other bytes than were written to it: no checkpoint "
                "would be safe there; tell the people who run the storage, and set another runs_dir",
            ),
        )
    free = stat.f_bavail * stat.f_frsize
    kept = _bytes_below(run_folder(subject.config).checkpoints_dir)
    failures, warnings = _space(subject.plan, subject.config.checkpoint.every_steps, free, kept)
    slow = min(speeds.write, speeds.read)
    if slow < SLOW_BYTES_PER_SECOND:
        warnings += (
            f"runs_dir={subject.config.runs_dir}: {bytes_text(slow)}/s for one writer and reader is slow for checkpoints of "
            f"{bytes_text(subject.plan.checkpoint_bytes)}; use a faster file system, or checkpoint.async=true",
        )
    needs = wanted_bytes(subject.plan)
    return Finding(
        f"{bytes_text(free)} free at {folder}, checkpoints need {bytes_text(needs)}; writes {bytes_text(speeds.write)}/s, "
        f"reads {bytes_text(speeds.read)}/s",
        failures=failures,
        warnings=warnings,
        facts={
            "folder": str(folder),
            "free_bytes": free,
            "wanted_bytes": needs,
            "kept_bytes": kept,
            "write_bytes_per_second": speeds.write,
            "read_bytes_per_second": speeds.read,
        },
    )


def existing_parent(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists: launching would make the rest."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def wanted_bytes(plan: Plan) -> int:
    """What the checkpoints take at most, with one being written; where all are kept, one."""
    return plan.checkpoint_bytes if plan.checkpoints_kept_bytes is None else plan.checkpoints_kept_bytes


def _space(plan: Plan, every: int, free: int, kept: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Failures and warnings about the room for checkpoints; `kept` bytes of them are there already."""
    keeps_all = plan.checkpoints_kept_bytes is None
    needs = wanted_bytes(plan) if keeps_all else max(plan.checkpoint_bytes, wanted_bytes(plan) - kept)
    if free < needs:
        what = "one checkpoint" if keeps_all else "the checkpoints to be kept, and one being written"
        advice = (
            "make room or set another runs_dir"
            if keeps_all
            else "make room, lower checkpoint.keep or set another runs_dir"
        )
        return (f"{bytes_text(free)} free, and {what} take {bytes_text(needs)}: {advice}",), ()
    count = -(-plan.steps // every)
    total = count * plan.checkpoint_bytes - kept
    if keeps_all and free < total:
        return (), (
            f"checkpoint.keep=null keeps all {count:,} checkpoints, {bytes_text(total)}; {bytes_text(free)} are free, and the run "
            f"would fill them after {free // plan.checkpoint_bytes:,}: set checkpoint.keep, or move checkpoints away in time",
        )
    return (), ()


def probe(folder: Path) -> Speeds | None:
    """Write `PROBE_BYTES` to disk and read them back; None where they are others. Raises OSError."""
    block = os.urandom(BLOCK_BYTES)  # nothing that a file system could compress
    blocks = PROBE_BYTES // BLOCK_BYTES
    written, read = hashlib.blake2b(), hashlib.blake2b()
    with tempfile.TemporaryFile(prefix=".preflight-", dir=folder, buffering=0) as file:
        started = time.perf_counter()
        for number in range(blocks):
            _write(file.fileno(), number.to_bytes(8, "little") + block[8:])
        os.fsync(file.fileno())
        wrote = time.perf_counter() - started
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)  # from the disk, not from memory
        started, seconds = time.perf_counter(), 0.0
        file.seek(0)
        while data := file.read(BLOCK_BYTES):
            seconds += time.perf_counter() - started
            read.update(data)
            started = time.perf_counter()
    for number in range(blocks):
        written.update(number.to_bytes(8, "little") + block[8:])
    if read.digest() != written.digest():
        return None
    return Speeds(PROBE_BYTES / max(wrote, 1e-9), PROBE_BYTES / max(seconds, 1e-9))


def _write(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def _bytes_below(folder: Path) -> int:
    """Size of all files in `folder`, 0 where there is none; what goes away meanwhile is passed over."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_size
            except FileNotFoundError:
                continue
    return total
