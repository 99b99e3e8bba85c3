"""Warnings that may come by the thousand: one line of a kind in a while, which says how many were left out."""

import logging
import threading
import time

log = logging.getLogger("harness.data")

LOG_SECONDS = 10.0
"""At most one line of a kind in this time."""


class SparseLog:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[float, int]] = {}

    def warning(self, kind: str, message: str, *arguments: object) -> None:
        """Log `message`, unless one of its `kind` was logged just before."""
        with self._lock:
            now = time.monotonic()
            last, left_out = self._kinds.get(kind, (float("-inf"), 0))
            if now - last < LOG_SECONDS:
                self._kinds[kind] = (last, left_out + 1)
                return
            self._kinds[kind] = (now, 0)
        others = f" ({left_out} more {kind} since the last such line)" if left_out else ""
        log.warning(message + "%s", *arguments, others)
