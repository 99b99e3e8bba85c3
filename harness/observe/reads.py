"""Writes what the data reader reports to the rank's board (implements `harness.data.observer.ReadObserver`)."""

import threading
import time

from harness.observe.board import MAX_IN_FLIGHT, Board, ReadKey


class BoardReads:
    """Each reading thread owns one in-flight slot; the histogram rows are shared and so stand behind a lock."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._lock = threading.Lock()

    def register(self, keys: list[tuple[str, str]]) -> None:
        self._board.write_read_keys([ReadKey(mount, source) for mount, source in keys])
        for slot in range(MAX_IN_FLIGHT):  # an earlier process of this rank may have died inside a read
            self._board.set("in_flight_since", 0.0, slot)

    def started(self, slot: int, key: int) -> None:
        self._board.set("in_flight_key", key, slot)
        self._board.set("in_flight_since", time.time(), slot)

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        self._board.set("in_flight_since", 0.0, slot)
        with self._lock:
            self._board.observe("read", seconds, key)
            self._board.add("read_bytes", bytes_read, key)
            if slow:
                self._board.add("slow_reads", 1, key)

    def failed(self, slot: int, key: int, errno: int) -> None:
        self._board.set("in_flight_since", 0.0, slot)
        with self._lock:
            self._board.add("read_errors", 1, key)
            self._board.set("last_errno", errno, key)

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self._board.set("queue_batches", batches)
        self._board.set("loader_cpu_seconds", cpu_seconds)
