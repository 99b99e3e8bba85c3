"""The data metrics of a node: every rank's reads by mount and source, what is still in flight, errors, queue, CPU."""

import errno
import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from harness.observe.board import MAX_IN_FLIGHT, MAX_READ_KEYS, Board, ReadKey
from harness.observe.histograms import add_histogram, total

log = logging.getLogger(__name__)

STORAGE_ERRNOS = ("EIO", "ESTALE", "ETIMEDOUT")
"""Exported as 0 before they happen, so that their first occurrence shows as an increase."""


@dataclass
class _Rank:
    """What is remembered of one rank's board between scrapes."""

    keys_version: int = 0
    keys: list[ReadKey] | None = None
    errors: list[float] | None = None


class ReadMetrics:
    """Turns the read cells of a node's boards into metrics; remembers enough to keep error counters right."""

    def __init__(self) -> None:
        self._ranks: dict[int, _Rank] = {}
        self._errors: dict[tuple[str, str], float] = {}  # (mount, errno name) -> count

    def collect(self, boards: dict[int, Board]) -> Iterable[Metric]:
        """Families for all ranks that have opened their data; nothing before the first has."""
        rows: dict[ReadKey, list[tuple[Board, int]]] = {}
        ready: dict[int, Board] = {}
        for rank, board in boards.items():
            keys = self._keys(rank, board)
            if keys:
                ready[rank] = board
            for row, key in enumerate(keys):
                rows.setdefault(key, []).append((board, row))
        if not ready:
            return
        yield from _by_source(rows)
        mounts = sorted({key.mount for key in rows})
        yield self._oldest_in_flight(ready, mounts)
        yield self._error_counts(ready, mounts)
        text = "Batches read ahead, on the rank with the fewest"
        fewest = min(board.get("queue_batches") for board in ready.values())
        yield GaugeMetricFamily("harness_data_queue_batches", text, value=fewest)
        cpu = sum(board.get("loader_cpu_seconds") for board in ready.values())
        yield CounterMetricFamily("harness_data_worker_cpu_seconds_total", "CPU time of the loaders", value=cpu)

    def _keys(self, rank: int, board: Board) -> list[ReadKey]:
        memory = self._ranks.setdefault(rank, _Rank())
        try:
            version = board.path.with_suffix(".keys").stat().st_mtime_ns
        except OSError:
            return memory.keys or []
        if memory.keys is None or version != memory.keys_version:
            try:
                memory.keys = board.read_keys()[:MAX_READ_KEYS]
            except (OSError, TypeError) as error:
                log.warning("the read keys of rank %d are left out: %s", rank, error)
                memory.keys = []
            memory.keys_version = version
        return memory.keys

    def _oldest_in_flight(self, boards: dict[int, Board], mounts: list[str]) -> Metric:
        """Seconds per mount; 0 where nothing is under way. Reads of a dead process are over, whatever its board says."""
        oldest = dict.fromkeys(mounts, 0.0)
        now = time.time()
        for rank, board in boards.items():
            if board.get("pid") and not board.process.alive:  # not said: believe the board
                continue
            keys = self._ranks[rank].keys or []
            for slot in range(MAX_IN_FLIGHT):
                since, key = board.get("in_flight_since", slot), int(board.get("in_flight_key", slot))
                if since and key < len(keys):
                    oldest[keys[key].mount] = max(oldest[keys[key].mount], now - since)
        family = GaugeMetricFamily(
            "harness_data_read_oldest_inflight_seconds", "Age of the oldest read that is not back", labels=["mount"]
        )
        for mount, seconds in oldest.items():
            family.add_metric([mount], seconds)
        return family

    def _error_counts(self, boards: dict[int, Board], mounts: list[str]) -> Metric:
        """A board keeps a count and the newest errno per row: what was added since the last look bears that errno."""
        for mount in mounts:
            for name in STORAGE_ERRNOS:
                self._errors.setdefault((mount, name), 0.0)
        for rank, board in boards.items():
            memory = self._ranks[rank]
            keys = memory.keys or []
            counts = [board.get("read_errors", row) for row in range(len(keys))]
            seen = memory.errors or []
            for row, (key, count) in enumerate(zip(keys, counts, strict=True)):
                added = count - (seen[row] if row < len(seen) else 0.0)
                if added > 0:
                    number = int(board.get("last_errno", row))
                    label = (key.mount, errno.errorcode.get(number, str(number)))
                    self._errors[label] = self._errors.get(label, 0.0) + added
            memory.errors = counts
        family = CounterMetricFamily("harness_data_read_errors_total", "Reads that failed", labels=["mount", "errno"])
        for (mount, name), errors in sorted(self._errors.items()):
            family.add_metric([mount, name], errors)
        return family


def _by_source(rows: dict[ReadKey, list[tuple[Board, int]]]) -> Iterable[Metric]:
    labels = ["mount", "source"]
    seconds = HistogramMetricFamily("harness_data_read_seconds", "Reads of training data", labels=labels)
    size = CounterMetricFamily("harness_data_read_bytes_total", "Bytes of training data read", labels=labels)
    slow = CounterMetricFamily("harness_data_slow_reads_total", "Reads over the slow limit", labels=labels)
    for key, places in sorted(rows.items(), key=lambda item: (item[0].mount, item[0].source)):
        names = [key.mount, key.source]
        add_histogram(seconds, names, total(board.histogram("read", row) for board, row in places))
        size.add_metric(names, sum(board.get("read_bytes", row) for board, row in places))
        slow.add_metric(names, sum(board.get("slow_reads", row) for board, row in places))
    return seconds, size, slow
