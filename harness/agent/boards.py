"""Where the boards of a node's ranks lie: in memory, private to one attempt."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harness.observe.board import BOARD_BYTES
from harness.run.folder import RunFolder
from harness.run.node import Node

MEMORY = (Path("/dev/shm"), Path("/tmp"), Path("/var/tmp"))
"""Where boards may lie, best first: the ranks write to them all the time."""
SPARE_BYTES = 1 << 20
"""Room beside the boards: names of the data's sources, torch's files about the ranks."""


def make_boards_folder(run: RunFolder, node: Node, ranks: int, roots: Sequence[Path] = MEMORY) -> Path:
    """A new folder with room for the boards of `ranks` ranks; those of the run's killed agents are removed.

    In the first of `roots`, or else in the run folder. Raises OSError if there is no room anywhere."""
    this_run = hashlib.blake2b(str(run.path.resolve()).encode(), digest_size=6).hexdigest()
    prefix = f"harness-{os.getuid()}-{this_run}-{node.name}-"
    places = [*roots, run.attempts_dir]
    for place in places:
        for stale in place.glob(f"{prefix}*"):
            shutil.rmtree(stale, ignore_errors=True)
    problems = []
    for place in places:
        try:
            return _with_room(place, prefix, ranks * BOARD_BYTES + SPARE_BYTES)
        except OSError as error:
            problems.append(f"{place}: {error.strerror}")
    raise OSError(errno.ENOSPC, f"no room for the boards of {ranks} ranks ({'; '.join(problems)}). Free some of it")


def _with_room(place: Path, prefix: str, size: int) -> Path:
    """A new folder in `place` in which `size` bytes can be written. Raises OSError."""
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=place))
    probe = folder / "room"
    try:
        with open(probe, "wb") as f:
            os.posix_fallocate(f.fileno(), 0, size)
        probe.unlink()
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder
