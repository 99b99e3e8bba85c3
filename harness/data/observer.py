"""How the reader tells somebody else about its reads, without knowing whom."""

import time
from typing import Protocol

from harness.observe.board import MAX_IN_FLIGHT, Board, ReadKey


class ReadObserver(Protocol):
    """Told of every read of training data. Called from several threads at once."""

    def started(self, slot: int, key: int) -> None:
        """Thread `slot` begins a read of read key number `key`."""

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        """The read is over."""

    def failed(self, slot: int, key: int, errno: int) -> None:
        """The read raised an OSError."""

    def queue(self, batches: int, cpu_seconds: float) -> None:
        """Batches now ready, and CPU seconds that the loader's threads have used so far."""


class BoardObserver:
    """Writes reads to the rank's board. Each reading thread owns one slot, so no cell has two writers at once
    except the histogram rows, which the caller's GIL protects."""

    def __init__(self, board: Board, keys: list[ReadKey]) -> None:
        self._board = board
        board.write_read_keys(keys)
        for slot in range(MAX_IN_FLIGHT):  # an earlier process may have died in a read
            board.set("in_flight_since", 0.0, slot)

    def started(self, slot: int, key: int) -> None:
        self._board.set("in_flight_key", key, slot)
        self._board.set("in_flight_since", time.time(), slot)

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        self._board.set("in_flight_since", 0.0, slot)
        self._board.observe("read", seconds, key)
        self._board.add("read_bytes", bytes_read, key)
        if slow:
            self._board.add("slow_reads", 1, key)

    def failed(self, slot: int, key: int, errno: int) -> None:
        self._board.set("in_flight_since", 0.0, slot)
        self._board.add("read_errors", 1, key)
        self._board.set("last_errno", errno, key)

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self._board.set("queue_batches", batches)
        self._board.set("loader_cpu_seconds", cpu_seconds)
