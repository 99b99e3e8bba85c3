"""Puts late reads of a source together into one stall with a beginning and an end, for the run's record."""

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from harness.data.observer import ReadObserver, Stall
from harness.data.read_requests import Request
from harness.data.reader import Reader


@dataclass
class _Open:
    """A stall that goes on."""

    first: Request
    reason: str
    late: set[Request]
    """Those that are late now."""
    reads: int
    """Those that have been late so far."""
    served_by: str
    """Path that the last of them came from; until then where it was asked for first."""


class Stalls:
    """Told by the watching thread of all reads that are late, and by reading threads of those that have come."""

    def __init__(self, reader: Reader, observer: ReadObserver) -> None:
        self._reader, self._observer = reader, observer
        self._lock = threading.Lock()
        self._open: dict[int, _Open] = {}

    def look(self, overdue: Iterable[Request], now: float) -> None:
        """Begin stalls, and end those whose reads have all come."""
        late: dict[int, set[Request]] = {}
        for request in overdue:
            late.setdefault(request.source, set()).add(request)
        with self._lock:
            for source, requests in late.items():
                if (stall := self._open.get(source)) is not None:
                    stall.reads += len(requests - stall.late)
                    stall.late = requests
                    continue
                first = min(requests, key=lambda request: request.begun)
                reason = "; ".join(first.failures.values()) or "no answer yet"
                self._open[source] = _Open(first, reason, requests, len(requests), self._reader.path(first))
                self._observer.stall_began(self._stall(self._open[source], now))
            for source in [source for source in self._open if source not in late]:
                ended = self._open.pop(source)
                self._observer.stall_ended(self._stall(ended, now, ended.served_by))

    def served(self, request: Request, copy: int) -> None:
        """A read has come; cheap where no stall goes on."""
        if not self._open:
            return
        with self._lock:
            if (stall := self._open.get(request.source)) is not None and request in stall.late:
                stall.served_by = self._reader.path(request, copy)

    def _stall(self, stall: _Open, now: float, served_by: str | None = None) -> Stall:
        return Stall(
            source=self._reader.name(stall.first),
            path=self._reader.path(stall.first),
            offset=stall.first.offset,
            reason=stall.reason,
            seconds=now - stall.first.begun,
            reads=stall.reads,
            served_by=served_by,
        )
