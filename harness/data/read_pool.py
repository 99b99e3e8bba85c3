"""Threads that read, and one that watches them: a read that fails or hangs is tried again, elsewhere if there is elsewhere.

A thread inside a dead file system cannot be ended. It is left alone, another takes its place, and what it may still bring
is used if it is the first to come. Each thread reads into memory of its own, so a late one never harms a batch.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from harness.data.copies import Damaged, Scratch
from harness.data.errors import DataError
from harness.data.observer import ReadObserver
from harness.data.read_requests import Request
from harness.data.read_settings import MOST_THREADS, ReadSettings
from harness.data.reader import Reader
from harness.data.sparse_log import SparseLog
from harness.data.stalls import Stalls

log = logging.getLogger(__name__)

QUICK_SECONDS = 0.0005
"""A read that takes no longer comes from memory."""
SLOW_SHARE = 0.25
"""So many may take longer while reads still count as coming from memory: now and then one waits for the interpreter, or for
a core."""
TICK_SECONDS = 0.1
"""Between looks at what is under way."""
LATE_SECONDS = 0.1
"""A read that has been under way for longer does not come from memory: others are let in at once."""
BACKOFF_SECONDS = (0.1, 0.5, 2.0, 5.0)
"""Pauses before all copies are asked again; the last one is repeated."""
DAMAGED_TRIES = 2
"""So often a copy may hold something wrong, one after the other, before it counts as damaged for good."""
TOGETHER = 8
"""Reads that a thread takes from the queue at once while they come from memory."""
SUSPECT_READS = 4
"""With so many reads overdue a mount, or a copy of a source, is asked last."""
THREADS_FOR_HEDGES = 32
"""Of MOST_THREADS, kept for reads that were late elsewhere."""


@dataclass(slots=True, eq=False)
class _Attempt:
    """What a thread is reading."""

    request: Request
    copy: int
    since: float
    hedged: bool = False
    timed_out: bool = False
    failed: bool = False


class ReadPool:
    """Serves the requests that `more` hands out, in about their order, and tells `served` of each when it is complete.

    `more` is called by one thread at a time and returns [] while nothing is wanted; `wake` makes it be asked again. Where a
    request can't be served, or anything else goes wrong, `broken` is told once and the pool ends.
    """

    def __init__(
        self,
        reader: Reader,
        settings: ReadSettings,
        observer: ReadObserver,
        more: Callable[[], list[Request]],
        served: Callable[[Request], None],
        broken: Callable[[Exception], None],
    ) -> None:
        self._reader, self._settings, self._observer = reader, settings, observer
        self._more, self._served, self._broken = more, served, broken
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._queue: deque[Request] = deque()
        self._later: list[tuple[float, int, Request]] = []
        self._numbers = 0
        self._asking = False
        self._wakes = 0
        self._ended = threading.Event()
        self._attempts: list[_Attempt | None] = [None] * MOST_THREADS
        self._backlogs: list[deque[Request]] = [deque() for _ in range(MOST_THREADS)]
        self._threads: dict[int, threading.Thread] = {}
        self._waiting = 0
        self._slow_share = 0.0
        """Of about the last 16 reads, those that took longer than from memory."""
        self._slow = 0
        self._suspects: frozenset[str | tuple[int, int]] = frozenset()
        self._troubled: set[Request] = set()
        self._cpu = [0.0] * MOST_THREADS
        self._cpu_before = 0.0
        self._log = SparseLog()
        self._stalls = Stalls(reader, observer)
        self._watch = threading.Thread(target=self._watch_reads, name="data-reader-watch", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        with self._lock:
            for _ in range(self._settings.threads):
                self._add_thread()
        self._watch.start()

    @property
    def cpu_seconds(self) -> float:
        """CPU time that the threads have used."""
        return self._cpu_before + sum(self._cpu)

    @property
    def _quick(self) -> bool:
        """Whether reads come at once: then one thread alone is fastest, as others would only take turns with it."""
        return self._slow_share < SLOW_SHARE

    def wake(self) -> None:
        """More may be wanted now. A thread that is at work while reads come at once will see it by itself."""
        with self._lock:
            self._wakes += 1
            if not self._quick or self._waiting + self._slow >= len(self._threads):
                self._work.notify()

    def close(self, seconds: float) -> None:
        """End all threads; waits for them for at most `seconds`."""
        self._ended.set()
        with self._lock:
            self._queue.clear()
            self._work.notify_all()
            threads = [self._watch, *self._threads.values()]
        deadline = time.monotonic() + seconds
        closing = threading.Thread(target=self._reader.close, name="data-reader-close", daemon=True)
        closing.start()
        threads.append(closing)
        for thread in threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        if stuck := [thread.name for thread in threads if thread.is_alive()]:
            log.warning("%s still hang in a read; they end with the process", ", ".join(stuck))

    # --- threads that read -------------------------------------------------------------------------------------------

    def _add_thread(self) -> None:
        slot = next(number for number in range(MOST_THREADS) if number not in self._threads)
        thread = threading.Thread(target=self._read_all, args=(slot,), name=f"data-reader-{slot}", daemon=True)
        self._threads[slot] = thread
        thread.start()

    def _read_all(self, slot: int) -> None:
        scratch, backlog = Scratch(), self._backlogs[slot]
        try:
            while self._next(backlog):
                while (request := _first(backlog)) is not None:
                    if not request.done:
                        self._attempt(slot, request, scratch)
                self._cpu[slot] = time.thread_time()
        except Exception as error:  # whatever it is, the trainer must hear of it instead of waiting for ever
            self._fail(error)
        finally:
            with self._lock:
                self._attempts[slot] = None
                self._cpu_before, self._cpu[slot] = self._cpu_before + self._cpu[slot], 0.0
                del self._threads[slot]

    def _next(self, backlog: deque[Request]) -> bool:
        """Put the next reads to try into a thread's backlog: several while they come at once. False: it is to end."""
        while True:
            with self._lock:
                if self._ended.is_set():
                    return False
                if len(self._threads) - self._slow > self._settings.threads:
                    self._work.notify()  # what woke it is for one that stays
                    return False  # it stood in for a thread that has come back
                if self._quick and len(self._threads) - self._waiting - self._slow > 1:
                    self._wait()
                    continue
                if self._queue:
                    for _ in range(min(TOGETHER, len(self._queue)) if self._quick else 1):
                        backlog.append(self._queue.popleft())
                    if self._queue and self._waiting and not self._quick:
                        self._work.notify()
                    return True
                if self._asking:
                    self._wait()
                    continue
                self._asking, wakes = True, self._wakes
            requests = self._more()
            with self._lock:
                self._asking = False
                if requests:
                    for request in requests:
                        request.live = 1
                    self._queue.extend(requests)
                elif wakes == self._wakes:
                    self._wait()

    def _wait(self) -> None:
        self._waiting += 1
        self._work.wait()
        self._waiting -= 1

    def _attempt(self, slot: int, request: Request, scratch: Scratch) -> None:
        """Read once, opening included: on a cold file system that is where the time goes."""
        copy = self._choose(request)
        key = self._reader.key(request, copy)
        attempt = _Attempt(request, copy, time.monotonic())
        request.begun = request.begun or attempt.since
        self._attempts[slot] = attempt
        self._observer.started(slot, key)
        try:
            tokens = self._reader.read(request, copy, scratch)
        except OSError as error:
            self._attempts[slot] = None
            self._observer.failed(slot, key, error.errno or 5)
            if not self._ended.is_set():
                self._failed(attempt, error)
            return
        seconds = time.monotonic() - attempt.since
        self._slow_share += ((seconds > QUICK_SECONDS) - self._slow_share) / 16
        self._attempts[slot] = None
        slow = seconds > self._settings.slow_seconds
        self._observer.finished(slot, key, seconds, tokens.nbytes, slow)
        if slow:
            self._log.warning(
                "slow reads", "slow read: %.2f s at offset %d of %s (source %s)",
                seconds, request.offset, self._reader.path(request, copy), self._reader.name(request),
            )  # fmt: skip
        self._deliver(request, copy, tokens)

    def _deliver(self, request: Request, copy: int, tokens: np.ndarray) -> None:
        if next(request.answers) or self._ended.is_set():
            return  # another attempt was first: its batch may be in use already
        request.done = True
        request.deliver(tokens)
        self._stalls.served(request, copy)
        self._served(request)

    def _choose(self, request: Request) -> int:
        """The copy to ask: each in its turn, one with many overdue reads only where there is no other."""
        copies = self._reader.available(request)
        request.turn += 1
        if len(copies) == 1:
            return copies[0]
        first = (request.turn - 1) % len(copies)
        turns = copies[first:] + copies[:first]
        if self._suspects:
            turns.sort(key=lambda copy: [place in self._suspects for place in self._places(request, copy)])
        return turns[0]

    def _places(self, request: Request, copy: int) -> tuple[str, tuple[int, int]]:
        """What a read that hangs makes suspicious: the mount, and the copy of this source."""
        return self._reader.mount(request, copy), (request.source, copy)

    # --- what went wrong ---------------------------------------------------------------------------------------------

    def _failed(self, attempt: _Attempt, error: OSError) -> None:
        """Note why, and have it tried again."""
        request, path = attempt.request, self._reader.path(attempt.request, attempt.copy)
        reason = error.strerror or str(error)
        self._log.warning(
            "failed reads", "read of %d bytes at offset %d of %s failed: %s",
            self._reader.size(request), request.offset, path, reason,
        )  # fmt: skip
        with self._lock:
            if request.done:
                return
            request.failures[path] = reason
            damaged = isinstance(error, Damaged)
            request.damaged[attempt.copy] = request.damaged.get(attempt.copy, 0) + 1 if damaged else 0
            self._troubled.add(request)
            attempt.failed = True
            if not attempt.timed_out:  # otherwise that has been done already
                request.live -= 1
                self._try_again(request)
        if all(request.damaged.get(copy, 0) >= DAMAGED_TRIES for copy in self._reader.available(request)):
            self._give_up(request)

    def _try_again(self, request: Request) -> None:
        """Queue another attempt unless one is to come: at once at the next copy, after a pause when all have been asked."""
        if request.live > 0:
            return
        request.live = 1
        rounds, place = divmod(request.turn, len(self._reader.copies[request.source]))
        if place:
            self._queue.appendleft(request)
            self._work.notify()
            return
        pause = BACKOFF_SECONDS[min(rounds, len(BACKOFF_SECONDS)) - 1]
        self._numbers += 1
        heappush(self._later, (time.monotonic() + pause, self._numbers, request))

    def _give_up(self, request: Request) -> None:
        seconds = time.monotonic() - request.begun
        tried = "; ".join(f"{path}: {reason}" for path, reason in request.failures.items())
        self._fail(
            DataError(
                f"cannot read {self._reader.size(request)} bytes at offset {request.offset} of {self._reader.path(request)} "
                f"({self._reader.source_key(request)}); gave up after {seconds:.1f} s and {request.turn} attempts. "
                f"{tried}. Restore the file, or name a copy in data.{self._reader.group(request)}."
                f"{self._reader.name(request)}.replicas, then launch the run again."
            )
        )

    def _fail(self, error: Exception) -> None:
        self._ended.set()
        with self._lock:
            self._work.notify_all()
        self._broken(error)

    # --- the thread that watches -------------------------------------------------------------------------------------

    def _watch_reads(self) -> None:
        try:
            while not self._ended.wait(TICK_SECONDS):
                self._tick(time.monotonic())
        except Exception as error:
            self._fail(error)

    def _tick(self, now: float) -> None:
        settings = self._settings
        attempts = [(slot, attempt) for slot, attempt in enumerate(self._attempts) if attempt is not None]
        late: Counter[str | tuple[int, int]] = Counter()
        slow = 0
        for slot, attempt in attempts:
            age = now - attempt.since
            if age > LATE_SECONDS:
                self._slow_share = 1.0
                self._take_back(self._backlogs[slot])
            slow += age > settings.slow_seconds
            if age > settings.hedge_seconds:
                late.update(self._places(attempt.request, attempt.copy))
                self._hedge(attempt)
            if age > settings.timeout_seconds and not attempt.timed_out:
                self._time_out(slot, attempt)
        self._suspects = frozenset(place for place, count in late.items() if count >= SUSPECT_READS)
        with self._lock:
            self._slow = slow
            while self._later and self._later[0][0] <= now:
                self._queue.appendleft(heappop(self._later)[2])
                self._work.notify()
            surplus = len(self._threads) - slow > settings.threads
            forgotten = self._queue and self._waiting + slow >= len(self._threads)
            if surplus or forgotten or not self._quick:
                self._work.notify_all()
            self._replace_slow()
            self._troubled = {request for request in self._troubled if not request.done}
            unfinished = set(self._troubled)
        unfinished |= {attempt.request for _, attempt in attempts if not attempt.request.done}
        overdue = [request for request in unfinished if now - request.begun > settings.hedge_seconds]
        self._stalls.look(overdue, now)
        for request in overdue:
            if now - request.begun > settings.give_up_seconds and not request.done:
                self._give_up(request)
                return

    def _take_back(self, backlog: deque[Request]) -> None:
        """Let others serve what waits behind a read that takes its time."""
        with self._lock, suppress(IndexError):
            while True:
                self._queue.appendleft(backlog.pop())

    def _replace_slow(self) -> None:
        """As many threads as are wanted beside those that wait for slow storage, while there is something to read."""
        again = bool(self._queue) and self._queue[0].begun > 0  # attempts after the first one stand before all others
        most = MOST_THREADS if again else MOST_THREADS - THREADS_FOR_HEDGES
        wanted = min(self._settings.threads + self._slow, max(most, self._settings.threads))
        if self._queue or not (self._waiting or self._asking):
            while len(self._threads) < wanted and not self._ended.is_set():
                self._add_thread()

    def _hedge(self, attempt: _Attempt) -> None:
        """Ask another copy as well, once, and see who is first."""
        request = attempt.request
        if attempt.hedged or len(self._reader.copies[request.source]) == 1:
            return
        attempt.hedged = True
        with self._lock:
            if not request.done:
                request.live += 1
                self._queue.appendleft(request)
                self._work.notify()

    def _time_out(self, slot: int, attempt: _Attempt) -> None:
        """Stop counting on an attempt; its thread stays where it is."""
        request = attempt.request
        with self._lock:
            if attempt.failed or request.done:
                return
            attempt.timed_out = True
        self._observer.timed_out(slot, self._reader.key(request, attempt.copy))
        path = self._reader.path(request, attempt.copy)
        reason = f"no answer within {self._settings.timeout_seconds:g} s"
        self._log.warning("hung reads", "read at offset %d of %s: %s", request.offset, path, reason)
        with self._lock:
            if not request.done:
                request.failures[path] = reason
                self._troubled.add(request)
                request.live -= 1
                self._try_again(request)


def _first(backlog: deque[Request]) -> Request | None:
    """The next of a backlog that the watching thread may empty at any moment."""
    try:
        return backlog.popleft()
    except IndexError:
        return None
