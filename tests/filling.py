"""Small file systems that tests fill; they need root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class SmallDisk:
    """A mounted tmpfs."""

    folder: Path

    def fill(self) -> None:
        """Leave not one byte."""
        with open(self.folder / ".filling", "ab", buffering=0) as f:
            try:
                while f.write(bytes(4096)):
                    pass
            except OSError:
                pass

    def free(self) -> None:
        """Take back what `fill` has taken."""
        (self.folder / ".filling").unlink(missing_ok=True)

    def grow(self) -> None:
        """Make it large."""
        self._remount("size=64m")

    def make_read_only(self) -> None:
        self._remount("ro")

    def make_writable(self) -> None:
        self._remount("rw")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.folder)], check=True)


@contextmanager
def full_disk(folder: Path, kilobytes: int) -> Iterator[SmallDisk]:
    """A disk of this size, mounted on the new folder. Skips the test if it can't be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("can't mount a tmpfs here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
