"""The hidden folder in which an output is made."""

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.data.errors import DataError

LOCK = "lock"


def partial_path(output: Path) -> Path:
    """Where `output` is made: beside it, on the same file system."""
    return output.with_name(f".{output.name}.partial")


@contextlib.contextmanager
def partial_folder(output: Path) -> Iterator[Path]:
    """`partial_path`, made and locked against another call on this machine."""
    partial = partial_path(output)
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"--output {output}: another prepare is making it (it holds {partial}/{LOCK})") from None
        yield partial


def has_completed_tasks(partial: Path) -> bool:
    """Whether a stopped preparation left anything to go on with."""
    return any(partial.glob("logs/*/completions/*"))


def remove(partial: Path, itself: bool = False) -> None:
    """Empty the folder but for its lock, or remove it."""
    if itself:
        shutil.rmtree(partial, ignore_errors=True)
        return
    for entry in partial.iterdir():
        if entry.name != LOCK:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
