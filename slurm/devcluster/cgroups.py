"""One version-2 cgroup for each node: freezes it, and shows its own pressure (PSI)."""

import contextlib
import time
from pathlib import Path

from .errors import ClusterError
from .layout import Layout


def mount_point() -> Path | None:
    """Where the version-2 hierarchy is mounted (alone or beside version 1), or None."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def folder(layout: Layout, node: str) -> Path | None:
    """The node's cgroup, or None where the machine has no version 2."""
    root = mount_point()
    return root / layout.member(node) if root else None


def create(layout: Layout, node: str) -> Path | None:
    """Make the node's cgroup, thawed; None where the machine has no version 2 or does not let us write it."""
    path = folder(layout, node)
    if path is None:
        return None
    try:
        path.mkdir(exist_ok=True)
        (path / "cgroup.freeze").write_text("0")
    except OSError:
        return None
    return path


def set_frozen(layout: Layout, node: str, frozen: bool) -> None:
    """Stop or resume every process of the node at once. Raises ClusterError where the machine cannot."""
    path = folder(layout, node)
    if path is None or not (path / "cgroup.freeze").exists():
        raise ClusterError(
            f"cannot freeze {node}: this machine has no writable cgroup version 2 "
            "(mount -t cgroup2 none DIR, as root, brings it)"
        )
    (path / "cgroup.freeze").write_text("1" if frozen else "0")


def is_frozen(layout: Layout, node: str) -> bool:
    """Whether the node was frozen and not thawed."""
    path = folder(layout, node)
    try:
        return path is not None and (path / "cgroup.freeze").read_text().strip() == "1"
    except OSError:
        return False


def destroy(prefix: str, seconds: float = 5.0) -> None:
    """Remove the cgroups of all nodes. Their processes must be gone; the kernel may need a moment to notice."""
    root = mount_point()
    deadline = time.monotonic() + seconds
    while root and (left := list(root.glob(f"{prefix}-*"))):
        for path in left:
            with contextlib.suppress(OSError):
                path.rmdir()
        if time.monotonic() > deadline:
            raise ClusterError(f"cgroup {left[0]} cannot be removed: see its cgroup.procs")
        time.sleep(0.02)
