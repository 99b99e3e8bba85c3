"""What a stager says of itself, in a small file that agents, metrics and people read."""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from harness.run.files import write_json
from harness.run.records import read_record
from harness.text import bytes_text, duration_text


class StageState(StrEnum):
    """Where staging stands."""

    running = "running"
    done = "done"
    """Every file has a complete copy."""
    partial = "partial"
    """Some files stay where they are, for want of room."""
    failed = "failed"
    """Some files could not be copied: damaged, or not to be read."""
    stopped = "stopped"
    """Told to end before that."""


@dataclass
class StageStatus:
    """Bytes, files and seconds of one stager, on one node."""

    state: StageState = StageState.running
    pid: int = 0
    started: float = 0.0
    updated: float = 0.0
    seconds: float = 0.0
    files_wanted: int = 0
    files_staged: int = 0
    files_left: int = 0
    """Stay where they are: no room."""
    files_failed: int = 0
    bytes_wanted: int = 0
    bytes_staged: int = 0
    """In complete copies, those that were there before included."""
    bytes_copied: int = 0
    """Read by this stager, also for copies that are not complete."""
    bytes_from_peers: int = 0
    """In complete copies that came from other nodes."""
    bytes_missing: int = 0
    """Room that is missing for all files."""
    bytes_per_second: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def over(self) -> bool:
        """Whether no more files will be copied."""
        return self.state is not StageState.running

    @property
    def ready(self) -> bool:
        """Whether the node has all that it needs."""
        return self.state is StageState.done

    @property
    def ready_ratio(self) -> float:
        """Share of the bytes that are there in complete copies."""
        return self.bytes_staged / self.bytes_wanted if self.bytes_wanted else 1.0

    @property
    def text(self) -> str:
        """`staged 12.3 of 40.0 GB (31%) in 24 s, 512.0 MB/s, 54 s left`."""
        there = f"staged {bytes_text(self.bytes_staged)} of {bytes_text(self.bytes_wanted)} ({self.ready_ratio:.0%})"
        line = f"{there} in {duration_text(self.seconds)}"
        if self.state is StageState.running and self.bytes_per_second > 0:
            left = max(0, self.bytes_wanted - self.bytes_staged) / self.bytes_per_second
            line += f", {bytes_text(self.bytes_per_second)}/s, {duration_text(left)} left"
        elif self.bytes_copied:
            line += f", {bytes_text(self.bytes_copied)} copied"
        if self.bytes_from_peers:
            line += f", {bytes_text(self.bytes_from_peers)} from other nodes"
        return line


def status_path(stage_to: str | Path, run: str, node: str) -> Path:
    """Where a run's stager on a node writes, and others read. The node is named, for `stage_to` may be one folder for all."""
    return Path(stage_to) / f".status-{re.sub(r'[^A-Za-z0-9_.=,-]', '_', f'{run}-{node}')}.json"


def write_status(path: Path, status: StageStatus) -> None:
    """Replace the file. Raises OSError."""
    write_json(path, dataclasses.asdict(status))


def read_status(path: Path) -> StageStatus | None:
    """What the file says, None where there is none. Raises ValueError for another file, OSError if it can't be read."""
    return read_record(path, StageStatus)
