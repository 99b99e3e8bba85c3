"""Feeds one data-parallel rank: one object per optimizer step, read ahead by background threads, in the run's exact order."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from typing import Protocol, Self

import numpy as np

from harness.data.buffers import Allocate, BufferPool, pageable
from harness.data.errors import DataError
from harness.data.observer import NullObserver, ReadObserver
from harness.data.read_pool import ReadPool
from harness.data.read_requests import Request, plan_reads
from harness.data.read_settings import ReadSettings
from harness.data.reader import Reader
from harness.data.skips import NO_SKIPS, Skips
from harness.data.stage_paths import StagedFiles
from harness.data.token_files import TokenSource
from harness.data.windows import Windows

NO_TARGET = -100
"""Label of a token that does not count: cross-entropy leaves it out."""
CLOSE_SECONDS = 5.0
"""How long `close` waits for threads. One that hangs inside a read cannot be ended; it is a daemon and dies with the process."""
FINISHED_AHEAD = 2
"""Batches made ready for the trainer; those behind them wait as tokens alone, in a third of the memory."""
PLANNED_SAMPLES = 256
"""Samples looked up in the order at once, so that small batches do not pay for each call."""


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
    """One forward pass of one rank. All arrays int32 [micro_batch_size, seq_len], contiguous and writable.

    Their memory is used again once no array, view or tensor over it is left.
    """

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
    """A step whose windows are being read, or wait for the trainer."""

    step: int
    batch: int
    samples: np.ndarray
    sources: np.ndarray
    windows: np.ndarray
    tokens: np.ndarray
    """int32 [samples, seq_len + 1]."""
    reads: int
    """That it takes to fill `tokens`."""
    come: Iterator[int] = field(default_factory=lambda: count(1))
    """Numbers the reads as they come: whoever gets the last number has the batch complete."""


class Loader:
    """Iterator over `StepBatch`es for steps `start_step` + 1, `start_step` + 2, ... `stop_step` (None: without end).

    `start_step` is the number of steps already done: all the state that a checkpoint needs, beside
    `order.definition()` and the `skips` so far. The samples of a step are the same, in the same global order, for any
    `dp_size` and `micro_batch_size`: of batch b, micro batch m of rank r holds samples
    (b-1)*G + m*micro*dp + r*micro + [0, micro), and b is the batch that `skips` names for the step.

    `staged` tells which files have a copy on the node's own disk: those are read there.

    Threads start at once and read as many batches ahead as `reading` has memory for; use `close()` or a `with` block. Reads
    that keep failing, and token ids at or above `vocab_size`, raise DataError from `next()`. `allocate` makes the memory of
    the arrays that `next()` returns.
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
        reading: ReadSettings | None = None,
        observer: ReadObserver | None = None,
        allocate: Allocate = pageable,
        staged: StagedFiles | None = None,
    ) -> None:
        if (global_batch_size, seq_len) != (order.global_batch_size, order.seq_len) or tuple(sources) != order.sources:
            raise ValueError("sources, global_batch_size and seq_len must be those that the order was built with")
        if micro_batch_size < 1 or dp_size < 1 or global_batch_size % (micro_batch_size * dp_size):
            raise DataError(
                f"train.global_batch_size={global_batch_size}: must be a multiple of train.micro_batch_size="
                f"{micro_batch_size} x {dp_size} data-parallel ranks"
            )
        if not 0 <= dp_rank < dp_size or start_step < 0:
            raise ValueError(f"dp_rank {dp_rank} must lie in [0, {dp_size}), start_step {start_step} not below 0")
        if document_mask and eos_token_id is None:
            raise DataError("data.eos_token_id=null: data.document_mask=true needs the token that ends a document")
        reading = reading or ReadSettings()
        if problems := list(reading.problems()):
            raise DataError("\n".join(problems))
        self._order = order
        self._skips = skips
        self._micro = micro_batch_size
        self._eos = eos_token_id if document_mask else None
        self._padded = any(windows.padded for windows in order.windows)
        self._next_step, self._stop_step = start_step, stop_step
        self._planned = start_step
        accumulation = np.arange(global_batch_size // (micro_batch_size * dp_size))
        # This rank's samples within a step, the same in every step.
        self._pattern = (
            (accumulation * micro_batch_size * dp_size)[:, None]
            + dp_rank * micro_batch_size
            + np.arange(micro_batch_size)
        ).reshape(-1)
        try:
            self._read_ahead = reading.batches(len(self._pattern), seq_len)
        except ValueError as error:
            raise DataError(str(error)) from error
        self._together = max(1, min(PLANNED_SAMPLES // len(self._pattern), self._read_ahead // 4))
        """Batches that are planned at once, as soon as there is room for all of them."""
        self._free: deque[np.ndarray] = deque()
        self._buffers = BufferPool((3, len(self._pattern), seq_len), allocate)
        self._observer = observer or NullObserver()
        self._changed = threading.Condition()
        self._building: dict[int, _Building] = {}
        self._ready: dict[int, _Building | StepBatch] = {}
        self._error: Exception | None = None
        self._closed = False
        reader = Reader(order.windows, reading, vocab_size, staged)
        self._observer.register(reader.key_names)
        self._pool = ReadPool(reader, reading, self._observer, self._more, self._served, self._broken)
        self._pool.start()

    def __iter__(self) -> Iterator[StepBatch]:
        return self

    def __next__(self) -> StepBatch:
        """The next step's batch; waits for it. Raises DataError when reading failed, RuntimeError after `close`."""
        with self._changed:
            if self._stop_step is not None and self._next_step >= self._stop_step:
                raise StopIteration
            while self._next_step not in self._ready:
                if self._closed:
                    raise RuntimeError("the data loader was closed")
                if self._error is not None:
                    raise self._error
                self._changed.wait()
            ready = self._ready.pop(self._next_step)
            self._next_step += 1
        batch = self._finish(ready) if isinstance(ready, _Building) else ready
        if self._next_step + self._read_ahead - self._planned >= self._together:
            self._pool.wake()
        self._report()
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all threads and wake whoever waits in `next()`. Can be called again, and from any thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._pool.close(CLOSE_SECONDS)

    def _more(self) -> list[Request]:
        """The reads of the next steps that there is room for; called by one reading thread at a time."""
        last = self._next_step + self._read_ahead
        if last - self._planned < self._together:
            return []
        last = min(last, self._planned + self._together)
        steps = range(self._planned, last if self._stop_step is None else min(last, self._stop_step))
        if not steps:
            return []
        batches = [self._skips.batch_of_step(step + 1) for step in steps]
        samples = (np.array(batches)[:, None] - 1) * self._order.global_batch_size + self._pattern
        sources, windows = (found.reshape(samples.shape) for found in self._order.samples(samples.reshape(-1)))
        requests: list[Request] = []
        for row, (step, batch) in enumerate(zip(steps, batches, strict=True)):
            tokens = self._empty()
            reads = plan_reads(self._order.windows, sources[row], windows[row], step, tokens)
            self._building[step] = _Building(step, batch, samples[row], sources[row], windows[row], tokens, len(reads))
            requests += reads
        self._planned = steps.stop
        return requests

    def _empty(self) -> np.ndarray:
        """Room for a step's tokens: int32 [samples, seq_len + 1]."""
        try:
            return self._free.pop()
        except IndexError:
            return np.empty((len(self._pattern), self._order.seq_len + 1), dtype=np.int32)

    def _served(self, request: Request) -> None:
        """A read has come."""
        building = self._building[request.step]
        if next(building.come) < building.reads:
            return
        del self._building[request.step]
        soon = request.step < self._next_step + FINISHED_AHEAD
        ready = self._finish(building) if soon else building
        with self._changed:
            self._ready[request.step] = ready
            self._changed.notify_all()
        self._report()

    def _broken(self, error: Exception) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _finish(self, building: _Building) -> StepBatch:
        """By a reading thread where the trainer waits for it or will soon, else by the trainer: then it takes less memory."""
        inputs, labels, positions = self._buffers.take()
        targets, begins = self._lay_out(building)
        np.copyto(inputs, building.tokens[:, :-1])
        np.copyto(labels, targets)
        position_ids(inputs, self._eos, begins, out=positions)
        parts = []
        for begin in range(0, len(inputs), self._micro):
            rows = slice(begin, begin + self._micro)
            parts.append(MicroBatch(inputs[rows], labels[rows], positions[rows]))
        self._free.append(building.tokens)
        return StepBatch(building.step + 1, building.batch, parts, building.samples, building.sources, building.windows)

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
        self._observer.queue(len(self._ready), self._pool.cpu_seconds)


def position_ids(
    input_ids: np.ndarray,
    eos_token_id: int | None,
    begins: np.ndarray | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Positions int32 [samples, seq_len] from 0; they start again after each `eos_token_id`, where one is given, and then at
    `begins` too, bool [samples, seq_len]."""
    samples, seq_len = input_ids.shape
    out = np.empty((samples, seq_len), dtype=np.int32) if out is None else out
    places, rows = _places(samples, seq_len)
    starts = rows  # of documents, in all rows one after the other
    if eos_token_id is not None:
        found = [rows, (input_ids == eos_token_id).reshape(-1).nonzero()[0] + 1]
        if begins is not None:
            found.append(begins.reshape(-1).nonzero()[0])
        starts = np.sort(np.concatenate(found))  # one may come twice, as the beginning of a row: the first time empty
        starts = starts[: np.searchsorted(starts, places.size)]
    lengths = np.empty_like(starts)
    np.subtract(starts[1:], starts[:-1], out=lengths[:-1])
    lengths[-1] = places.size - starts[-1]
    np.subtract(places, np.repeat(starts.astype(np.int32), lengths), out=out.reshape(-1))
    return out


@lru_cache(maxsize=8)
def _places(samples: int, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each token in all rows together int32 [samples * seq_len], and of each row's first one int64 [samples]."""
    return np.arange(samples * seq_len, dtype=np.int32), np.arange(samples, dtype=np.int64) * seq_len
