"""Whether the run folder's disk takes what the run writes, as far as that can be told without writing."""

import os
from pathlib import Path

from harness.text import bytes_text

FULL_BYTES = 1 << 20
"""Less than this is full: lines of the ledger still fit, and nothing else does."""


def disk_problem(folder: Path, checkpoint_bytes: int | None) -> str | None:
    """What is wrong with the disk under `folder`; None if nothing is, or the file system doesn't say. Quotas don't show."""
    try:
        found = os.statvfs(folder)
    except OSError as error:
        return f"{folder} can't be reached: {error.strerror}"
    free = found.f_bavail * found.f_frsize
    if found.f_flag & os.ST_RDONLY:
        return "READ-ONLY: the run trains on, its lines wait, and no checkpoint can be written"
    if free < FULL_BYTES or (found.f_files and not found.f_favail):
        what = f"{bytes_text(free)} free" if free < FULL_BYTES else "no file can be made any more"
        return f"FULL ({what}): the run trains on, its lines wait, and no checkpoint can be written"
    if checkpoint_bytes is not None and free < checkpoint_bytes:
        return f"{bytes_text(free)} free, and a checkpoint takes {bytes_text(checkpoint_bytes)}: make room"
    return None
