"""What staging would copy, whether it fits, and how long it would take: measured by reading samples, writing nothing."""

import contextlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from harness.config.schema import DataConfig
from harness.data.origins import open_at
from harness.data.stage_copy import Room, is_staged
from harness.data.stage_plan import StageFile
from harness.text import bytes_text, duration_text

SAMPLE_BYTES = 32 << 20
"""Read from the middle of each file of the sample."""
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True)
class Estimate:
    """Bytes and seconds; `bytes_per_second` None: nothing is left to copy, or no sample could be read."""

    files: int
    bytes: int
    bytes_to_copy: int
    room: int
    bytes_per_second: float | None

    @property
    def missing(self) -> int:
        """Room that is missing."""
        return max(0, self.bytes_to_copy - self.room) if self.bytes_to_copy else 0

    @property
    def seconds(self) -> float | None:
        return self.bytes_to_copy / self.bytes_per_second if self.bytes_per_second else None


def estimate(data: DataConfig, files: Sequence[StageFile]) -> str:
    """A table with a row per source, and what it comes to."""
    assert data.stage_to is not None
    rows = [("source", "files", "size", "already staged")]
    for source in dict.fromkeys(file.source for file in files):
        own = [file for file in files if file.source == source]
        there = sum(file.size for file in own if is_staged(file))
        rows.append((source, f"{len(own):,}", bytes_text(sum(file.size for file in own)), bytes_text(there)))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    table = ["  ".join(f"{cell:<{w}}" if n == 0 else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(row, widths, strict=True)))
             for row in rows]  # fmt: skip
    return "\n".join([*table, *_sentences(data, made_for(data, files))])


def made_for(data: DataConfig, files: Sequence[StageFile]) -> Estimate:
    """Look at the disk, and read samples of what is not there yet."""
    assert data.stage_to is not None
    room = Room(Path(data.stage_to).expanduser().absolute(), data.stage_keep_free_bytes)
    missing = [file for file in files if not is_staged(file)]
    rate = measure(missing, data.stage_threads) if missing else None
    if rate is not None and data.stage_bytes_per_second is not None:
        rate = min(rate, data.stage_bytes_per_second)
    size = sum(file.size for file in files)
    return Estimate(len(files), size, sum(file.size for file in missing), room.left(), rate)


def measure(files: Sequence[StageFile], threads: int) -> float | None:
    """Bytes per second that `threads` readers get from the largest files, past this machine's page cache where it can be
    passed; None where nothing could be read."""
    sample = sorted(files, key=lambda file: -file.size)[:threads]
    started = time.perf_counter()
    with ThreadPoolExecutor(max(1, len(sample))) as pool:
        read = sum(pool.map(_read_sample, sample))
    return read / max(1e-9, time.perf_counter() - started) if read else None


def _read_sample(file: StageFile) -> int:
    begin = max(0, (file.size - SAMPLE_BYTES) // 2)
    read = 0
    with contextlib.suppress(Exception), contextlib.closing(open_at(file.origin, begin)) as source:
        with contextlib.suppress(OSError, AttributeError):
            os.posix_fadvise(source.fileno(), begin, SAMPLE_BYTES, os.POSIX_FADV_DONTNEED)
        while read < SAMPLE_BYTES and (block := source.read(BLOCK_BYTES)):
            read += len(block)
    return read


def _sentences(data: DataConfig, found: Estimate) -> list[str]:
    lines = [f"{bytes_text(found.bytes_to_copy)} of {bytes_text(found.bytes)} to copy to data.stage_to={data.stage_to}"]
    if found.missing:
        lines.append(
            f"{bytes_text(max(0, found.room))} may be used there and {bytes_text(found.missing)} are missing: what does not fit "
            "is read where it is. Make room, name a larger disk, or lower data.stage_keep_free_bytes"
        )
    else:
        lines.append(f"{bytes_text(found.room)} may be used there: it fits")
    if found.bytes_per_second is not None:
        limit = data.stage_bytes_per_second
        how = "data.stage_bytes_per_second" if limit == found.bytes_per_second else f"{data.stage_threads} readers"
        lines.append(
            f"about {duration_text(found.seconds or 0)} at {bytes_text(found.bytes_per_second)}/s ({how}); other nodes that "
            "read at the same time share the storage's speed"
        )
    elif found.bytes_to_copy:
        lines.append("no sample could be read, so the time is not known: python -m harness.data check says why")
    return lines
