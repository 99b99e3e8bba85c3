"""Which processes belong to a member of the cluster, read from /proc, so that no pid file can be wrong."""

import contextlib
import os
import signal
import time
from pathlib import Path

from .errors import ClusterError

PROC = Path("/proc")
POLL_SECONDS = 0.02


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir(PROC) if entry.isdigit()]


def _namespace(pid: int, kind: str) -> str | None:
    """Identity of a process's namespace, or None when the process is gone or a zombie."""
    try:
        return os.readlink(PROC / str(pid) / "ns" / kind)
    except OSError:
        return None


def in_network(netns: Path) -> list[int]:
    """Every living process in the network namespace that is mounted at `netns`, on either side of its pid namespace."""
    try:
        identity = f"net:[{netns.stat().st_ino}]"
    except FileNotFoundError:
        return []
    return [pid for pid in _pids() if _namespace(pid, "net") == identity]


def init_of(netns: Path) -> int | None:
    """This machine's number of the node's PID 1, or None when the node has no power."""
    for pid in in_network(netns):
        with contextlib.suppress(OSError, StopIteration):
            status = (PROC / str(pid) / "status").read_text().splitlines()
            numbers = next(line for line in status if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1":
                return pid
    return None


def in_tree(init: int) -> list[int]:
    """Every living process in the pid namespace of `init`, itself included."""
    identity = _namespace(init, "pid")
    return [pid for pid in _pids() if identity and _namespace(pid, "pid") == identity]


def command(pid: int) -> str:
    """Command line of a process; its name where it has none; empty when it is gone."""
    try:
        line = (PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        return line or f"[{(PROC / str(pid) / 'comm').read_text().strip()}]"
    except OSError:
        return ""


def kill(pids: list[int]) -> None:
    """SIGKILL each; those already gone are fine."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_network(netns: Path, seconds: float = 15.0) -> None:
    """SIGKILL everything in a network namespace until nothing is left (a process may fork meanwhile).

    Raises ClusterError naming the processes that outlive `seconds` (stuck in the kernel, as on a dead file system).
    """
    deadline = time.monotonic() + seconds
    while left := in_network(netns):
        if time.monotonic() > deadline:
            names = "\n".join(f"  {pid} {command(pid)}" for pid in left)
            raise ClusterError(f"these processes in {netns.name} do not die (stuck on a dead mount?):\n{names}")
        kill(left)
        time.sleep(POLL_SECONDS)


def wait_gone(pids: list[int], seconds: float = 15.0) -> None:
    """Wait until none of the processes lives. Raises ClusterError naming those that outlive `seconds`."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if _namespace(pid, "pid")]:
        if time.monotonic() > deadline:
            names = "\n".join(f"  {pid} {command(pid)}" for pid in left)
            raise ClusterError(f"these processes do not die (stuck on a dead mount?):\n{names}")
        time.sleep(POLL_SECONDS)
