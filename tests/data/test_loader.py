import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness.data.reader as reader_module
from harness.config.schema import StageConfig
from harness.data.errors import DataError
from harness.data.loader import Loader, StepBatch, position_ids
from harness.data.order import SampleOrder
from harness.data.reader import mount_point
from harness.data.skips import Skips
from harness.data.token_files import TokenSource, open_source
from harness.data.windows import Windows
from tests.data.conftest import write_token_file


class Watcher:
    """An observer that remembers everything, and knows what is in flight."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.keys: list[tuple[str, str]] = []
        self.in_flight: dict[int, int] = {}
        self.reads: list[tuple[int, int, float, int, bool]] = []
        self.errors: list[tuple[int, int]] = []
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
        self.began.set()

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        with self.lock:
            assert self.in_flight.pop(slot) == key
            self.reads.append((slot, key, seconds, bytes_read, slow))

    def failed(self, slot: int, key: int, errno: int) -> None:
        with self.lock:
            assert self.in_flight.pop(slot) == key
            self.errors.append((key, errno))

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self.queued.append(batches)
        self.cpu_seconds = cpu_seconds


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
        "read_ahead_batches": 3,
        "read_threads": 3,
        **settings,
    }
    return Loader(order.sources, order, **chosen)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("data-reader")]
    assert not left


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "RETRY_DELAYS", (0.001, 0.001, 0.001))


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


def test_equals_the_files(order: SampleOrder) -> None:
    with make(order, stop_step=15) as loader:
        batches = list(loader)
    assert [batch.step for batch in batches] == list(range(1, 16))
    for batch in batches:
        assert len(batch.micro_batches) == 4
        for number, index in enumerate(batch.samples):
            micro, row = batch.micro_batches[number // 2], number % 2
            expected = reference(order, int(index))
            assert micro.input_ids.shape == (2, 32) and micro.input_ids.dtype == np.int64
            assert micro.input_ids.flags.c_contiguous and micro.input_ids.flags.writeable
            assert np.array_equal(micro.input_ids[row], expected[:-1])
            assert np.array_equal(micro.labels[row], expected[1:])
            assert np.array_equal(micro.position_ids, position_ids(micro.input_ids, 0))
            assert (batch.sources[number], batch.windows[number]) == order.sample(int(index))


@pytest.mark.parametrize(("dp_size", "micro_batch_size"), [(1, 8), (1, 1), (2, 2), (2, 4), (4, 1), (4, 2), (8, 1)])
def test_same_samples_for_any_layout(order: SampleOrder, dp_size: int, micro_batch_size: int) -> None:
    ranks = []
    for rank in range(dp_size):
        with make(order, dp_rank=rank, dp_size=dp_size, micro_batch_size=micro_batch_size, stop_step=12) as loader:
            ranks.append(list(loader))
    for step in range(12):
        # All ranks' first micro batches, then all their second ones, ...: that is the global order.
        indices = [
            batches[step].samples.reshape(-1, micro_batch_size)[micro].tolist()
            for micro in range(8 // (dp_size * micro_batch_size))
            for batches in ranks
        ]
        assert np.concatenate(indices).tolist() == list(range(step * 8, step * 8 + 8))
    merged = {index: row for batches in ranks for index, row in all_inputs(batches).items()}
    assert merged == {index: reference(order, index)[:-1].tolist() for index in range(12 * 8)}


@pytest.mark.parametrize("start", [1, 9, 10, 11, 500])
def test_resumes_at_any_step(order: SampleOrder, start: int) -> None:
    with make(order, start_step=start, stop_step=start + 3) as loader:
        batches = list(loader)
    assert [batch.step for batch in batches] == [start + 1, start + 2, start + 3]
    assert all_inputs(batches) == {i: reference(order, i)[:-1].tolist() for i in range(start * 8, start * 8 + 24)}


@pytest.mark.parametrize(("dp_size", "micro_batch_size"), [(1, 8), (1, 2), (2, 2), (8, 1)])
def test_skipped_batches_are_left_out_and_the_rest_stay_what_they_were(
    order: SampleOrder, dp_size: int, micro_batch_size: int
) -> None:
    skips = Skips([[3, 4], [9, 11], [14, 14]])  # the middle one lies across the end of the first stage
    kept = [batch for batch in range(1, 19) if not any(first <= batch <= last for first, last in skips.ranges)]
    for start in (0, 2, 5):
        rows: dict[int, list[int]] = {}
        for rank in range(dp_size):
            layout = {"dp_rank": rank, "dp_size": dp_size, "micro_batch_size": micro_batch_size}
            with make(order, skips=skips, start_step=start, stop_step=len(kept), **layout) as loader:
                batches = list(loader)
            assert [batch.step for batch in batches] == list(range(start + 1, len(kept) + 1))
            assert [batch.batch for batch in batches] == kept[start:]
            assert all(((batch.samples // 8) + 1 == batch.batch).all() for batch in batches)
            rows |= all_inputs(batches)
        expected = [(batch - 1) * 8 + place for batch in kept[start:] for place in range(8)]
        assert rows == {index: reference(order, index)[:-1].tolist() for index in expected}


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), min_size=1, max_size=4))
def test_positions_restart_after_each_end_of_document(rows: list[list[int]]) -> None:
    expected = []
    for row in rows:
        position, positions = 0, []
        for token in row:
            positions.append(position)
            position = 0 if token == 3 else position + 1
        expected.append(positions)
    assert position_ids(np.array(rows), 3).tolist() == expected
    assert position_ids(np.array(rows), None).tolist() == [list(range(12))] * len(rows)


def test_without_document_mask_positions_run_through(order: SampleOrder) -> None:
    with make(order, document_mask=False, stop_step=3) as loader:
        for batch in loader:
            for micro in batch.micro_batches:
                assert (micro.position_ids == np.arange(32)).all()


def test_reads_ahead_but_no_further(order: SampleOrder) -> None:
    watcher = Watcher()
    with make(order, observer=watcher, read_ahead_batches=3) as loader:
        wait_until(lambda: len(loader._ready) == 3)
        threads = list(loader._threads)
        time.sleep(0.05)  # room to do wrong
        assert len(watcher.reads) == 3 * 8
        assert len(loader._ready) == 3 and all(thread.is_alive() for thread in threads)
        next(loader)
        wait_until(lambda: len(watcher.reads) == 4 * 8)
    assert max(watcher.queued) == 3
    assert watcher.cpu_seconds > 0


def test_tells_the_observer(order: SampleOrder, two_sources: list[TokenSource]) -> None:
    watcher = Watcher()
    with make(order, observer=watcher, stop_step=5) as loader:
        batches = list(loader)
    mount = mount_point(two_sources[0].path)
    assert watcher.keys == [(mount, "first"), (mount, "second")]
    assert os.path.ismount(mount)
    assert sorted(key for _, key, *_ in watcher.reads) == sorted(np.concatenate([b.sources for b in batches]).tolist())
    assert {slot for slot, *_ in watcher.reads} <= {0, 1, 2}
    assert {size for *_, size, _ in watcher.reads} == {33 * 2}
    assert not watcher.in_flight and not watcher.errors


def test_slow_reads_are_flagged_and_logged_once(
    order: SampleOrder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pread = os.pread

    def slow(*arguments: int) -> bytes:
        time.sleep(0.002)
        return pread(*arguments)

    monkeypatch.setattr(reader_module.os, "pread", slow)
    watcher = Watcher()
    with (
        caplog.at_level(logging.WARNING),
        make(order, observer=watcher, slow_read_seconds=0.001, stop_step=2) as loader,
    ):
        list(loader)
    assert len(watcher.reads) == 16 and all(slow and seconds >= 0.002 for *_, seconds, _, slow in watcher.reads)
    assert len(caplog.messages) == 1
    assert (
        caplog.messages[0].startswith("slow read: 0.00 s at offset ") and "_shuffled.ds (source " in caplog.messages[0]
    )


def test_a_read_that_hangs_is_visible_and_close_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening a FIFO without a writer blocks in the kernel, as a read on a dead mount does."""
    order = small_order(tmp_path)
    path = order.sources[0].files[0].path
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("harness.data.loader.CLOSE_SECONDS", 0.1)
    watcher = Watcher()
    loader = make(order, observer=watcher, read_threads=1)
    waiting = Waiter(loader)
    assert watcher.began.wait(10)
    assert watcher.in_flight == {0: 0} and not watcher.reads
    loader.close()
    assert isinstance(waiting.result(), RuntimeError)
    assert "data-reader-0 still hang in a read" in caplog.text
    os.close(os.open(path, os.O_RDWR))  # the mount comes back: the thread sees that it is to end
    for thread in loader._threads:
        thread.join(10)


def test_close_wakes_a_waiting_consumer(order: SampleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    pread = os.pread

    def held(*arguments: int) -> bytes:
        released.wait(10)
        return pread(*arguments)

    monkeypatch.setattr(reader_module.os, "pread", held)
    watcher = Watcher()
    loader = make(order, observer=watcher)
    waiting = Waiter(loader)
    assert watcher.began.wait(10)
    threading.Timer(0.05, released.set).start()
    loader.close()
    loader.close()
    error = waiting.result()
    assert isinstance(error, RuntimeError) and "closed" in str(error)
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_truncated_under_the_run(tmp_path: Path, quick_retries: None, caplog: pytest.LogCaptureFixture) -> None:
    order = small_order(tmp_path)
    path = order.sources[0].files[0].path
    os.truncate(path, 100)
    watcher = Watcher()
    with make(order, observer=watcher, read_threads=1) as loader:
        with pytest.raises(DataError) as first:
            for batch in loader:  # what is still there is right
                for index, row in all_inputs([batch]).items():
                    assert row == reference(order, index)[:-1].tolist()
        with pytest.raises(DataError) as second:
            next(loader)
    message = str(first.value)
    assert f" of {path} (source web): the file ends at byte 100: it was cut off after the run had started" in message
    assert "gave up after 4 attempts" in message and "cannot read 18 bytes at offset " in message
    assert second.value is first.value
    assert len(watcher.errors) == 4 and caplog.text.count("failed: the file ends at byte 100") == 3


def test_a_missing_file_names_itself(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    order.sources[0].files[0].path.unlink()
    with make(order) as loader, pytest.raises(DataError, match=r"shard\.ds \(source web\): No such file or directory"):
        next(loader)


def test_a_passing_error_is_retried(order: SampleOrder, quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, lock, calls = os.pread, threading.Lock(), [0]

    def flaky(*arguments: int) -> bytes:
        with lock:
            calls[0] += 1
            number = calls[0]
        if number in (2, 5, 6):
            raise OSError(116, os.strerror(116))  # a stale handle
        if number == 8:
            return pread(*arguments)[:10]  # the rest comes with the next call
        return pread(*arguments)

    monkeypatch.setattr(reader_module.os, "pread", flaky)
    watcher = Watcher()
    with make(order, observer=watcher, stop_step=2) as loader:
        batches = list(loader)
    assert [errno for _, errno in watcher.errors] == [116] * 3
    monkeypatch.undo()
    assert all_inputs(batches) == {i: reference(order, i)[:-1].tolist() for i in range(16)}


def test_tokens_outside_the_vocabulary(tmp_path: Path) -> None:
    order = small_order(tmp_path)
    with make(order, vocab_size=50) as loader, pytest.raises(DataError) as error:
        list(zip(range(100), loader, strict=False))
    assert str(error.value).startswith(f"data.sources.web.path={tmp_path}/web: token ")
    assert "model.vocab_size=50" in str(error.value) and "at byte " in str(error.value)


def test_an_unexpected_error_reaches_the_consumer(order: SampleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(reader_module.WindowReader, "read", broken)
    with make(order) as loader, pytest.raises(ZeroDivisionError, match="a bug"):
        next(loader)


def test_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "OPEN_FILES", 3)
    for number in range(10):
        write_token_file(tmp_path / "web", [[number + 1] * 40 + [0]], f"{number}.ds")
    source = open_source("web", tmp_path / "web")
    order = SampleOrder([source], [StageConfig(weights={"web": 1})], seed=1, seq_len=8, global_batch_size=10)
    before = len(os.listdir("/proc/self/fd"))
    with make(order, read_threads=2, stop_step=20) as loader:
        rows = all_inputs(list(loader))
        assert len(os.listdir("/proc/self/fd")) <= before + 2 * 3
    assert rows == {index: reference(order, index)[:-1].tolist() for index in range(200)}
    assert len(os.listdir("/proc/self/fd")) == before


def test_uint32_files(tmp_path: Path) -> None:
    write_token_file(tmp_path / "web", [[100_000 + number for number in range(64)] + [0]], width=4)
    source = open_source("web", tmp_path / "web")
    order = SampleOrder([source], [StageConfig(weights={"web": 1})], seed=1, seq_len=64, global_batch_size=2)
    with make(order, stop_step=1) as loader:
        assert next(loader).micro_batches[0].labels[0].tolist() == [*range(100_001, 100_064), 0]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"micro_batch_size": 3},
            DataError,
            "train.global_batch_size=8: must be a multiple of train.micro_batch_size=3 x 1",
        ),
        ({"dp_size": 3}, DataError, "x 3 data-parallel ranks"),
        ({"eos_token_id": None}, DataError, "data.eos_token_id=null"),
        ({"read_threads": 0}, DataError, "data.read_threads=0"),
        ({"read_ahead_batches": 0}, DataError, "data.read_ahead_batches=0"),
        ({"dp_rank": 1}, ValueError, "dp_rank 1 must lie in"),
        ({"seq_len": 31}, ValueError, "those that the order was built with"),
    ],
)
def test_impossible_settings(order: SampleOrder, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        make(order, **settings)
    assert message in str(raised.value)


def test_a_link_belongs_to_the_mount_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/proc/self/status")
    assert mount_point(tmp_path / "link") == "/proc"


def small_order(root: Path) -> SampleOrder:
    """One file of 2,000 tokens, ids 0 to 99 over and over; samples of 8 tokens, 8 a step."""
    write_token_file(root / "web", [[number % 100 for number in range(2000)]], "shard.ds")
    source = open_source("web", root / "web")
    return SampleOrder([source], [StageConfig(weights={"web": 1})], seed=1, seq_len=8, global_batch_size=8)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


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

    def result(self) -> object:
        self._thread.join(10)
        assert not self._thread.is_alive(), "still waits"
        return self._outcome[0]
