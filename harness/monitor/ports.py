"""Whether a TCP port on loopback is free, and if not, whose it is."""

import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
LISTEN = "0A"
UNRESERVED = range(15000, 32000)
"""Where a free port is looked for: above the well-known services, below the ports of outgoing connections."""


def is_free(port: int) -> bool:
    """True where `port` can be listened on, on loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections that just ended do not count
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_row(count: int) -> int:
    """First of `count` free ports in a row, at a random place, so that two who look at once rarely meet.

    Raises OSError where there is none.
    """
    for first in random.sample(UNRESERVED, len(UNRESERVED)):
        if all(is_free(port) for port in range(first, first + count)):
            return first
    raise OSError(f"no {count} free ports in a row between {UNRESERVED.start} and {UNRESERVED.stop}")


def holder(port: int) -> str | None:
    """`name (pid N)` of the process that listens on `port`; None where that cannot be seen (another user's process)."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            for fd in (process / "fd").iterdir():
                if fd.readlink().name in inodes:
                    return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:  # not ours to look into, or gone
            continue
    return None


def _listening_inodes(port: int) -> set[str]:
    """`socket:[N]` of every socket that listens on `port`."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:  # sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode ...
            fields = line.split()
            if fields[3] == LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                found.add(f"socket:[{fields[9]}]")
    return found
