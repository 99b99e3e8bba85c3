"""A file system that behaves like a cache over slow storage: shards can be evicted, and all of it can go away.

    python -m benchmarks.loader.tiered_fs ROOT MOUNTPOINT CONTROL.json

Shows the files of ROOT, read-only. CONTROL.json is read again whenever it changes: {"evicted": ["00003.ds", ...],
"first_read_seconds": 2, "outage": "" | "hang" | "error"}. The first read of each block of an evicted file takes that long;
then the block is here again. In an outage all reads and opens hang until it is over, or fail with EIO.
"""

import errno
import json
import os
import sys
import threading
import time
from typing import Any

BLOCK_BYTES = 64 << 10
THREADS = 64
"""Requests served side by side: a slow one must not hold up the others."""


class Control:
    """The newest content of the control file."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._read = 0.0
        self._content: dict[str, Any] = {}

    def get(self) -> dict[str, Any]:
        """Looked at no more than twenty times a second."""
        now = time.monotonic()
        if now - self._read > 0.05:
            self._read = now
            with open(self._path, encoding="utf-8") as f:
                self._content = json.load(f)
        return self._content


class Residency:
    """Which blocks of evicted files are here."""

    def __init__(self, control: Control) -> None:
        self._control = control
        self._lock = threading.Lock()
        self._here: set[tuple[str, int]] = set()

    def wait(self, path: str, offset: int, size: int) -> None:
        """Return once the storage has what is asked for. Raises OSError in an outage of that kind."""
        self.outage()
        control = self._control.get()
        if path.lstrip("/").removesuffix(".sums") not in control.get("evicted", ()):
            return
        blocks = {
            (path, block) for block in range(offset // BLOCK_BYTES, (offset + max(1, size) - 1) // BLOCK_BYTES + 1)
        }
        with self._lock:
            missing = blocks - self._here
        if missing:
            time.sleep(control["first_read_seconds"])
            with self._lock:
                self._here |= missing

    def outage(self) -> None:
        """Hang while the storage hangs; raise EIO while it fails."""
        while (kind := self._control.get().get("outage")) == "hang":
            time.sleep(0.05)
        if kind == "error":
            raise OSError(errno.EIO, "outage")


def main() -> None:
    import mfusepy as fuse

    root, mountpoint, control_path = sys.argv[1:4]
    residency = Residency(Control(control_path))

    class Tiered(fuse.Operations):
        use_ns = True

        def init_with_config(self, connection: Any, config: Any) -> None:
            connection.max_readahead = 0
            connection.max_background = THREADS

        def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
            residency.outage()
            found = os.stat(root + path)
            keys = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
            times = {name: getattr(found, f"{name}_ns") for name in ("st_atime", "st_mtime", "st_ctime")}
            return {**{key: getattr(found, key) for key in keys}, **times}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(root + path)]

        def open(self, path: str, flags: int) -> int:
            residency.outage()
            return os.open(root + path, os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            residency.wait(path, offset, size)
            return os.pread(fh, size, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    # without the kernel's own read-ahead (above) and its attribute cache, what is read is what was asked for
    fuse.FUSE(
        Tiered(), mountpoint, foreground=True, nothreads=False, ro=True, fsname="tiered",
        attr_timeout=0, entry_timeout=0, max_threads=THREADS,
    )  # fmt: skip


if __name__ == "__main__":
    main()
