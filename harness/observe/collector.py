"""What a collector is, and how one is run so that a sick one harms nobody else."""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from prometheus_client.core import Metric

log = logging.getLogger(__name__)

STALE_SECONDS = 60.0
"""A result older than this (or than five of its collector's periods) is left out: absent rather than wrong."""


class Collector(Protocol):
    """Yields metric families. Called by one thread at a time; may raise, block or hang without harm to others."""

    name: str

    def collect(self) -> Iterable[Metric]:
        """Today's values. Raises CollectorDisabled where this machine has nothing to collect."""


class CollectorDisabled(Exception):
    """Raised by `collect()` where the machine lacks what is collected; the message says what. It is not called again."""


@dataclass(frozen=True)
class Background:
    """Collect on a clock of its own instead of at each scrape: for collectors that are slow, or that must sample."""

    collector: Collector
    every_seconds: float


@dataclass(frozen=True)
class Health:
    """How a collector is doing: seconds of its last call, failed calls, Unix time of its last success (0: never)."""

    enabled: bool
    seconds: float
    errors: int
    last_success: float


class Worker:
    """Runs one collector in a thread of its own and keeps its last good result.

    The thread makes one call at a time, so a call that hangs in the kernel costs this one thread and nothing more; the
    result then goes stale and is dropped, and `Health.last_success` stands still.
    """

    def __init__(self, collector: Collector, every_seconds: float | None) -> None:
        self.collector = collector
        self._every = every_seconds
        self._stale_seconds = max(STALE_SECONDS, 5 * (every_seconds or 0.0))
        self._changed = threading.Condition()
        self._asked = 0 if every_seconds is None else 1
        self._done = 0
        self._busy_since: float | None = None
        self._closed = False
        self._metrics: list[Metric] = []
        self._good_until = 0.0  # monotonic: a corrected wall clock must not hide a good result
        self._health = Health(enabled=True, seconds=0.0, errors=0, last_success=0.0)
        self._failing = False
        self._thread = threading.Thread(target=self._loop, name=f"collect-{collector.name}", daemon=True)
        self._thread.start()

    @property
    def health(self) -> Health:
        return self._health

    def ask(self) -> int:
        """Ask for a fresh result, unless this collector has its own clock. Returns a ticket for `wait`."""
        with self._changed:
            if self._every is None and self._health.enabled:
                self._asked += 1
                self._changed.notify_all()
            return self._asked

    def wait(self, ticket: int, seconds: float) -> None:
        """Wait at most `seconds` for the result behind `ticket`; not at all for a call that has hung that long already."""
        with self._changed:
            if self._every is not None or not self._health.enabled:
                return
            if self._busy_since is not None and time.monotonic() - self._busy_since > seconds:
                return
            self._changed.wait_for(lambda: self._done >= ticket or self._closed, timeout=seconds)

    def metrics(self) -> list[Metric]:
        """The last good result; empty where there is none or it is stale."""
        return self._metrics if time.monotonic() < self._good_until else []

    def stop(self) -> None:
        """Let the thread end after its present call, having closed the collector if that has a `close`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, seconds: float) -> None:
        """Wait at most so long for the thread to end; one that hangs is left to the end of the process."""
        self._thread.join(timeout=seconds)

    def _loop(self) -> None:
        while self._health.enabled:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._asked > self._done, timeout=self._every)
                if self._closed:
                    break
                ticket = self._asked
                self._busy_since = time.monotonic()
            self._call()
            with self._changed:
                self._busy_since = None
                self._done = ticket
                self._changed.notify_all()
        # Here and not in `stop`: a collector's child process may be bound to the life of this very thread.
        if (close := getattr(self.collector, "close", None)) is not None:
            close()

    def _call(self) -> None:
        start, before = time.monotonic(), self._health
        try:
            metrics = list(self.collector.collect())
            _check(metrics)
        except CollectorDisabled as reason:
            log.info("collector %s is off: %s", self.collector.name, reason)
            self._metrics = []
            self._health = Health(False, time.monotonic() - start, before.errors, before.last_success)
        except Exception as error:
            if not self._failing:  # once per bout, not at every scrape
                log.warning("collector %s failed: %s: %s", self.collector.name, type(error).__name__, error)
            self._failing = True
            self._health = Health(True, time.monotonic() - start, before.errors + 1, before.last_success)
        else:
            self._failing = False
            self._metrics = metrics
            self._good_until = time.monotonic() + self._stale_seconds
            self._health = Health(True, time.monotonic() - start, before.errors, time.time())


def _check(metrics: list[Metric]) -> None:
    """Refuse here what would break the page for everybody. Raises TypeError or ValueError."""
    for metric in metrics:
        for sample in metric.samples:
            float(sample.value)
            if not all(isinstance(value, str) for value in sample.labels.values()):
                raise TypeError(f"{sample.name}: a label's value is not a string: {sample.labels}")
