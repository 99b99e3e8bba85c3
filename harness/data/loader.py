"""Feeds one data-parallel rank: one object per optimizer step, read ahead by background threads, in the run's exact order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np

from harness.data.errors import DataError
from harness.data.observer import NullObserver, ReadObserver
from harness.data.reader import Closing, ReadPlan, WindowReader, mount_point, observer_keys
from harness.data.skips import NO_SKIPS, Skips
from harness.data.stage_paths import StagedFiles
from harness.data.token_files import TokenSource
from harness.data.windows import Windows

log = logging.getLogger(__name__)

NO_TARGET = -100
"""Label of a token that does not count: cross-entropy leaves it out."""
CLOSE_SECONDS = 5.0
"""How long `close` waits for threads. One that hangs inside a read cannot be ended; it is a daemon and dies with the process."""


class Order(Protocol):
    """Which window of which source is sample number i: `harness.data.order.SampleOrder`, or another function of i."""

    sources: tuple[TokenSource, ...]
    windows: tuple[Windows, ...]
    """How each source is cut."""
    seq_len: int
    global_batch_size: int

    def samples(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For int64 [n]: numbers of the sources int64 [n], windows int64 [n]."""


@dataclass(frozen=True)
class MicroBatch:
    """One forward pass of one rank. All arrays int64 [micro_batch_size, seq_len], contiguous and writable."""

    input_ids: np.ndarray
    labels: np.ndarray
    """The token after each input token: already shifted. `NO_TARGET` where none follows, as in padding."""
    position_ids: np.ndarray
    """Position in its document (document_mask; padding is one of its own) or in its window."""


@dataclass(frozen=True)
class StepBatch:
    """Everything that one rank trains on in one optimizer step."""

    step: int
    """Number of the optimizer step that this is for, counted from 1."""
    batch: int
    """Number of the batch in the run's order, counted from 1: above `step` once batches have been skipped."""
    micro_batches: list[MicroBatch]
    samples: np.ndarray
    """Index of each sample in the run's order, micro batch after micro batch: int64 [samples of this rank]."""
    sources: np.ndarray
    """Number of its source: int64 [samples of this rank]."""
    windows: np.ndarray
    """Window of that source: int64 [samples of this rank]."""


@dataclass
class _Building:
    """A step whose windows are being read."""

    step: int
    batch: int
    samples: np.ndarray
    sources: np.ndarray
    windows: np.ndarray
    tokens: np.ndarray
    missing: int


class Loader:
    """Iterator over `StepBatch`es for steps `start_step` + 1, `start_step` + 2, ... `stop_step` (None: without end).

    `start_step` is the number of steps already done: all the state that a checkpoint needs, beside
    `order.definition()` and the `skips` so far. The samples of a step are the same, in the same global order, for any
    `dp_size` and `micro_batch_size`: of batch b, micro batch m of rank r holds samples
    (b-1)*G + m*micro*dp + r*micro + [0, micro), and b is the batch that `skips` names for the step.

    `staged` tells which files have a copy on the node's own disk: those are read there.

    Threads start at once and read at most `read_ahead_batches` steps ahead; use `close()` or a `with` block. Reads that keep
    failing, and token ids at or above `vocab_size`, raise DataError from `next()`.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        order: Order,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        dp_rank: int,
        dp_size: int,
        start_step: int,
        seq_len: int,
        eos_token_id: int | None,
        document_mask: bool,
        stop_step: int | None = None,
        skips: Skips = NO_SKIPS,
        vocab_size: int | None = None,
        read_ahead_batches: int = 8,
        read_threads: int = 4,
        slow_read_seconds: float = 0.25,
        observer: ReadObserver | None = None,
        staged: StagedFiles | None = None,
    ) -> None:
        if (global_batch_size, seq_len) != (order.global_batch_size, order.seq_len) or tuple(sources) != order.sources:
            raise ValueError("sources, global_batch_size and seq_len must be those that the order was built with")
        if micro_batch_size < 1 or dp_size < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise DataError(
                f"train.global_batch_size={global_batch_size}: must be a multiple of train.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks"
            )
        if not 0 <= dp_rank < dp_size:
            raise ValueError(f"dp_rank {dp_rank} must lie in [0, {dp_size})")
        if start_step < 0 or read_ahead_batches < 1 or read_threads < 1:
            raise DataError(
                f"start_step={start_step}, data.read_ahead_batches={read_ahead_batches}, data.read_threads={read_threads}: "
                "at least 0, 1 and 1"
            )
        if document_mask and eos_token_id is None:
            raise DataError("data.eos_token_id=null: data.document_mask=true needs the token that ends a document")
        self._order = order
        self._skips = skips
        self._micro = micro_batch_size
        self._eos = eos_token_id if document_mask else None
        self._padded = any(windows.padded for windows in order.windows)
        self._next_step, self._stop_step = start_step, stop_step
        self._planned = start_step
        self._read_ahead = read_ahead_batches
        accumulation = np.arange(global_batch_size // (micro_batch_size * dp_size))
        # This rank's samples within a step, the same in every step.
        self._pattern = (
            (accumulation * micro_batch_size * dp_size)[:, None]
            + dp_rank * micro_batch_size
            + np.arange(micro_batch_size)
        ).reshape(-1)
        self._observer = observer or NullObserver()
        names, keys = observer_keys(order.windows)
        staged_keys = {}
        if staged is not None:
            mount = mount_point(staged.stage_to)
            pairs = [(mount, source.name) for source in sources]
            names = list(dict.fromkeys([*names, *pairs]))  # the originals may lie on the same file system
            staged_keys = {number: names.index(pair) for number, pair in enumerate(pairs)}
        self._observer.register(names)
        self._plan = ReadPlan(order.windows, keys, self._observer, slow_read_seconds, vocab_size, staged, staged_keys)
        self._changed = threading.Condition()
        self._tasks: deque[tuple[_Building, int]] = deque()
        self._ready: dict[int, StepBatch] = {}
        self._error: Exception | None = None
        self._cpu_seconds = [0.0] * read_threads
        self._threads = [
            threading.Thread(target=self._work, args=(slot,), name=f"data-reader-{slot}", daemon=True)
            for slot in range(read_threads)
        ]
        for thread in self._threads:
            thread.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        """The next step's batch; waits for it. Raises DataError when reading failed, RuntimeError after `close`."""
        with self._changed:
            if self._stop_step is not None and self._next_step >= self._stop_step:
                raise StopIteration
            while self._next_step not in self._ready:
                if self._plan.closing.is_set():
                    raise RuntimeError("the data loader was closed")
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            batch = self._ready.pop(self._next_step)
            self._next_step += 1
            self._changed.notify_all()  # room for one more step
            self._report()
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and wake whoever waits in `next()`. Can be called again, and from any thread."""
        self._plan.closing.set()
        with self._changed:
            self._tasks.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        if stuck:
            log.warning("%s still hang in a read; they end with the process", ", ".join(stuck))

    def _work(self, slot: int) -> None:
        reader = WindowReader(self._plan, slot)
        try:
            while (task := self._next_task()) is not None:
                building, row = task
                reader.read(int(building.sources[row]), int(building.windows[row]), building.tokens[row])
                with self._changed:
                    building.missing -= 1
                    complete = building.missing == 0
                if complete:
                    self._finish(building)
                self._cpu_seconds[slot] = time.thread_time()
        except Closing:
            pass
        except Exception as error:  # whatever it is, the trainer must hear of it instead of waiting for ever
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()
        finally:
            reader.close()

    def _next_task(self) -> tuple[_Building, int] | None:
        """The next window to read: the first one of a new step where nothing is waiting. None: time to end."""
        with self._changed:
            while True:
                if self._plan.closing.is_set() or self._error is not None:
                    return None
                if self._tasks:
                    return self._tasks.popleft()
                if self._stop_step is not None and self._planned >= self._stop_step:
                    return None
                if self._planned < self._next_step + self._read_ahead:
                    self._start_step(self._planned)
                    self._planned += 1
                else:
                    self._changed.wait()

    def _start_step(self, step: int) -> None:
        batch = self._skips.batch_of_step(step + 1)
        samples = (batch - 1) * self._order.global_batch_size + self._pattern
        sources, windows = self._order.samples(samples)
        tokens = np.empty((len(samples), self._order.seq_len + 1), dtype=np.int64)
        building = _Building(step, batch, samples, sources, windows, tokens, len(samples))
        self._tasks.extend((building, row) for row in range(len(samples)))
        self._changed.notify_all()

    def _finish(self, building: _Building) -> None:
        tokens = building.tokens
        labels, begins = self._lay_out(building)
        parts = []
        for begin in range(0, len(tokens), self._micro):
            rows = slice(begin, begin + self._micro)
            inputs = np.ascontiguousarray(tokens[rows, :-1])
            places = position_ids(inputs, self._eos, None if begins is None else begins[rows])
            parts.append(MicroBatch(inputs, np.ascontiguousarray(labels[rows]), places))
        batch = StepBatch(
            building.step + 1, building.batch, parts, building.samples, building.sources, building.windows
        )
        with self._changed:
            self._ready[building.step] = batch
            self._changed.notify_all()
            self._report()

    def _lay_out(self, building: _Building) -> tuple[np.ndarray, np.ndarray | None]:
        """The labels of all rows, and where documents begin in them, bool [samples, seq_len], as far as only packing knows.

        Fills up what a packed window leaves empty.
        """
        tokens = building.tokens
        labels = tokens[:, 1:]
        if not self._padded:
            return labels, None
        labels, begins = labels.copy(), np.zeros_like(labels, dtype=bool)
        for row, (source, window) in enumerate(zip(building.sources, building.windows, strict=True)):
            if not self._order.windows[source].padded:
                continue
            ends = np.cumsum([piece.tokens for piece in self._order.windows[source].pieces(int(window))])
            # any token but the one that would make each token of the padding a document of its own
            tokens[row, ends[-1] :] = int(self._eos == 0)
            labels[row, ends[-1] - 1 :] = NO_TARGET
            begins[row, ends[ends < self._order.seq_len]] = True
        return labels, begins

    def _report(self) -> None:
        self._observer.queue(len(self._ready), sum(self._cpu_seconds))


def position_ids(input_ids: np.ndarray, eos_token_id: int | None, begins: np.ndarray | None = None) -> np.ndarray:
    """Positions int64 [samples, seq_len] from 0; they start again after each `eos_token_id`, where one is given, and then at
    `begins` too, bool [samples, seq_len]."""
    places = np.broadcast_to(np.arange(input_ids.shape[1]), input_ids.shape)
    if eos_token_id is None:
        return places.copy()
    starts = np.zeros_like(input_ids)
    starts[:, 1:] = np.where(input_ids[:, :-1] == eos_token_id, places[:, 1:], 0)
    if begins is not None:
        starts = np.where(begins, places, starts)
    return places - np.maximum.accumulate(starts, axis=1)
