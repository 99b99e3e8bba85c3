"""Waiting for real processes."""

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
