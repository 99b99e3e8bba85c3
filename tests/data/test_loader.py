import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config.schema import StageConfig
from harness.data.copies import mount_point
from harness.data.errors import DataError
from harness.data.loader import position_ids
from harness.data.order import SampleOrder
from harness.data.read_settings import ReadSettings
from harness.data.reader import Reader
from harness.data.skips import Skips
from harness.data.token_files import TokenSource, open_source
from tests.data.conftest import write_token_file
from tests.data.loading import Waiter, Watcher, all_inputs, make, reference
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_thread_left")


def test_equals_the_files(order: SampleOrder) -> None:
    with make(order, stop_step=15) as loader:
        batches = list(loader)
    assert [batch.step for batch in batches] == list(range(1, 16))
    for batch in batches:
        assert len(batch.micro_batches) == 4
        for number, index in enumerate(batch.samples):
            micro, row = batch.micro_batches[number // 2], number % 2
            expected = reference(order, int(index))
            assert micro.input_ids.shape == (2, 32) and micro.input_ids.dtype == np.int32
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
    with make(order, observer=watcher) as loader:
        wait_for(lambda: watcher.queued and watcher.queued[-1] == 3)
        time.sleep(0.05)  # room to do wrong
        assert watcher.samples_read() == 3 * 8
        next(loader)
        wait_for(lambda: watcher.samples_read() == 4 * 8)
    assert max(watcher.queued) == 3
    assert watcher.cpu_seconds > 0


def test_tells_the_observer(order: SampleOrder, two_sources: list[TokenSource]) -> None:
    watcher = Watcher()
    with make(order, observer=watcher, stop_step=5) as loader:
        batches = list(loader)
    mount = mount_point(two_sources[0].path)
    assert watcher.keys == [(mount, "first"), (mount, "second")]
    assert os.path.ismount(mount)
    sources = np.concatenate([batch.sources for batch in batches])
    assert watcher.samples_read() == len(sources) == 40
    assert {key for _, key, *_ in watcher.reads} == set(sources.tolist())
    assert all(0 <= slot < 64 for slot, *_ in watcher.reads)
    assert not watcher.in_flight and not watcher.errors


def test_close_wakes_a_waiting_consumer(order: SampleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    read = Reader.read

    def held(*arguments: object) -> np.ndarray:
        released.wait(10)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Reader, "read", held)
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


def test_an_unexpected_error_reaches_the_consumer(order: SampleOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Reader, "read", broken)
    with make(order) as loader, pytest.raises(ZeroDivisionError, match="a bug"):
        next(loader)


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
        ({"reading": ReadSettings(threads=0)}, DataError, "data.read_threads=0"),
        ({"reading": ReadSettings(threads=65)}, DataError, "data.read_threads=65: must be at least 1 and at most 64"),
        (
            {"reading": ReadSettings(ahead_bytes=2 * 8 * 33 * 4 - 1)},
            DataError,
            "data.read_ahead_bytes=2111: must hold at least two batches, and a rank's batch of 8 sequences of data.seq_len=32 "
            "takes 1056. Set data.read_ahead_bytes=2112 or more",
        ),
        ({"reading": ReadSettings(hedge_seconds=40)}, DataError, "data.hedge_seconds=40, data.read_timeout_seconds=30"),
        ({"dp_rank": 1}, ValueError, "dp_rank 1 must lie in"),
        ({"seq_len": 31}, ValueError, "those that the order was built with"),
    ],
)
def test_impossible_settings(order: SampleOrder, settings: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as raised:
        make(order, **settings)
    assert message in str(raised.value)
