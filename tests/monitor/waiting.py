"""Helpers of tests that wait for real processes."""

import socket
import time
from collections.abc import Callable

LIMIT_SECONDS = 60.0


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Return once `condition()` holds; one that raises OSError does not hold yet. Fails after LIMIT_SECONDS."""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        try:
            if condition():
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"waited {LIMIT_SECONDS:.0f} s in vain: {what}")


def free_ports(count: int) -> int:
    """First of `count` free ports in a row on loopback, outside the range that outgoing connections take from."""
    for first in range(15000 + time.time_ns() % 5000, 30000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError(f"no {count} free ports in a row")
