"""Reports what the data reader does: to the rank's board, and stalls to the ledger (`harness.data.observer.ReadObserver`)."""

import errno
import threading
import time
from dataclasses import asdict
from queue import SimpleQueue

from harness.data.observer import Stall
from harness.observe.board import MAX_IN_FLIGHT, Board, ReadKey
from harness.run.folder import Ledger

Event = tuple[str, int, dict[str, object]]
"""Name, global step, fields."""


class BoardReads:
    """Each reading thread owns one in-flight slot; the histogram rows are shared and so stand behind a lock."""

    def __init__(self, board: Board, ledger: Ledger) -> None:
        self._board = board
        self._ledger = ledger
        self._lock = threading.Lock()
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._writer: threading.Thread | None = None

    def register(self, keys: list[tuple[str, str]]) -> None:
        try:
            self._board.write_read_keys([ReadKey(mount, source) for mount, source in keys])
        except OSError as error:  # costs the names of the reads in the metrics, and no training
            print(
                f"can't write beside {self._board.path}: {error}; the metrics will not show this rank's reads",
                flush=True,
            )
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
        self._count_error(key, errno)

    def timed_out(self, slot: int, key: int) -> None:
        self._count_error(key, errno.ETIMEDOUT)

    def stall_began(self, stall: Stall) -> None:
        why = f"reads of {stall.source} are late, first at {stall.offset} of {stall.path}: {stall.reason}"
        self._tell("data_stall", {**_fields(stall), "phase": "begin", "why": why})

    def stall_ended(self, stall: Stall) -> None:
        why = f"over: {stall.reads} reads of {stall.source} were late, the last came from {stall.served_by}"
        self._tell("data_stall", {**_fields(stall), "phase": "end", "why": why})

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self._board.set("queue_batches", batches)
        self._board.set("loader_cpu_seconds", cpu_seconds)

    def _count_error(self, key: int, number: int) -> None:
        with self._lock:
            self._board.add("read_errors", 1, key)
            self._board.set("last_errno", number, key)

    def _tell(self, event: str, fields: dict[str, object]) -> None:
        """Queue an event for the ledger, which may lie on the very storage that does not answer."""
        self._events.put((event, int(self._board.get("step")), fields))
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="data-events", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            event, step, fields = self._events.get()
            self._ledger.write(event, step, **fields)


def _fields(stall: Stall) -> dict[str, object]:
    fields = {name: value for name, value in asdict(stall).items() if name != "reason" and value is not None}
    return {**fields, "file": fields.pop("path"), "seconds": round(stall.seconds, 3)}
