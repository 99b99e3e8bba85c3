"""Loaders with small numbers, and an observer that remembers, for tests of reading."""

import threading
from pathlib import Path

import numpy as np

from harness.config.schema import StageConfig
from harness.data.loader import Loader, StepBatch
from harness.data.observer import NullObserver, Stall
from harness.data.order import SampleOrder
from harness.data.read_settings import ReadSettings, batch_bytes
from harness.data.token_files import open_source
from harness.data.windows import Windows
from tests.data.conftest import write_token_file


class Watcher(NullObserver):
    """An observer that remembers everything, and knows what is in flight."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keys: list[tuple[str, str]] = []
        self.in_flight: dict[int, int] = {}
        self.most_in_flight = 0
        self.reads: list[tuple[int, int, float, int, bool]] = []
        self.errors: list[tuple[int, int]] = []
        self.timeouts: list[int] = []
        self.stalls: list[Stall] = []
        self.queued: list[int] = []
        self.cpu_seconds = 0.0
        self.began = threading.Event()

    def register(self, keys: list[tuple[str, str]]) -> None:
        assert not self.keys, "registered twice"
        self.keys = keys

    def started(self, slot: int, key: int) -> None:
        with self.lock:
            assert slot not in self.in_flight, "a thread cannot read twice at once"
            self.in_flight[slot] = key
            self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        self.began.set()

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        with self.lock:
            assert self.in_flight.pop(slot) == key
            self.reads.append((slot, key, seconds, bytes_read, slow))

    def failed(self, slot: int, key: int, errno: int) -> None:
        with self.lock:
            assert self.in_flight.pop(slot) == key
            self.errors.append((key, errno))

    def timed_out(self, slot: int, key: int) -> None:
        with self.lock:
            assert self.in_flight[slot] == key
            self.timeouts.append(key)

    def stall_began(self, stall: Stall) -> None:
        self.stalls.append(stall)

    def stall_ended(self, stall: Stall) -> None:
        self.stalls.append(stall)

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self.queued.append(batches)
        self.cpu_seconds = cpu_seconds

    def samples_read(self) -> int:
        """For samples of 33 tokens of 2 bytes: neighbours, which share a token, may have come with one read."""
        return sum((size // 2 - 1) // 32 for *_, size, _ in self.reads)


def make(order: SampleOrder, **settings: object) -> Loader:
    """A loader of one rank with small numbers."""
    chosen = {
        "global_batch_size": order.global_batch_size,
        "micro_batch_size": 2,
        "dp_rank": 0,
        "dp_size": 1,
        "start_step": 0,
        "seq_len": order.seq_len,
        "eos_token_id": 0,
        "document_mask": True,
        "reading": reading(order, 3, threads=3),
        **settings,
    }
    return Loader(order.sources, order, **chosen)  # type: ignore[arg-type]


def reading(order: SampleOrder, batches: int = 3, **settings: object) -> ReadSettings:
    """Room for so many batches of one rank."""
    size = batch_bytes(order.global_batch_size, order.seq_len)
    return ReadSettings(ahead_bytes=batches * size, **settings)  # type: ignore[arg-type]


def reference(order: SampleOrder, index: int) -> np.ndarray:
    """Tokens of sample `index`, int64 [seq_len + 1], straight from the files."""
    number, window = order.sample(index)
    windows = Windows(order.sources[number], order.seq_len)
    piece = windows.pieces(window)[0]
    file, offset = piece.file, piece.offset
    tokens = np.fromfile(windows.source.files[file].path, "<u2")
    first = offset // 2
    return tokens[first : first + order.seq_len + 1].astype(np.int64)


def all_inputs(batches: list[StepBatch]) -> dict[int, list[int]]:
    """Sample index -> its input ids."""
    rows = {}
    for batch in batches:
        inputs = np.concatenate([micro.input_ids for micro in batch.micro_batches])
        rows |= {int(index): row.tolist() for index, row in zip(batch.samples, inputs, strict=True)}
    return rows


def small_order(root: Path) -> SampleOrder:
    """One file of 2,000 tokens, ids 0 to 99 over and over; samples of 8 tokens, 8 a step."""
    write_token_file(root / "web", [[number % 100 for number in range(2000)]], "shard.ds")
    source = open_source("web", root / "web")
    return SampleOrder([source], [StageConfig(weights={"web": 1})], seed=1, seq_len=8, global_batch_size=8)


class Waiter:
    """A thread that waits in `next()`."""

    def __init__(self, loader: Loader) -> None:
        self._outcome: list[object] = []
        self._thread = threading.Thread(target=self._wait, args=(loader,))
        self._thread.start()

    def _wait(self, loader: Loader) -> None:
        try:
            self._outcome.append(next(loader))
        except Exception as error:
            self._outcome.append(error)

    def is_waiting(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> object:
        self._thread.join(10)
        assert not self._thread.is_alive(), "still waits"
        return self._outcome[0]
