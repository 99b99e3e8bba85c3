"""What happens when files do not answer, answer late, or answer wrongly."""

import contextlib
import dataclasses
import logging
import os
import re
import threading
import time
from pathlib import Path

import pytest

import harness.data.copies as copies_module
import harness.data.read_pool as pool_module
from harness.config.schema import StageConfig
from harness.data.checksums import sums_path, write_checksums
from harness.data.copies import LocalCopy
from harness.data.errors import DataError
from harness.data.order import SampleOrder
from harness.data.token_files import open_source
from tests.data.conftest import write_token_file
from tests.data.loading import Waiter, Watcher, all_inputs, make, reading, reference, small_order
from tests.waiting import wait_for

pytestmark = pytest.mark.usefixtures("no_thread_left")

QUICK = {"hedge_seconds": 0.05, "timeout_seconds": 0.3, "give_up_seconds": 60.0}


def shard(order: SampleOrder) -> Path:
    return order.sources[0].files[0].path


def copy_of(order: SampleOrder, folder: Path) -> str:
    """A replica of the order's one file."""
    folder.mkdir()
    for path in (shard(order), sums_path(shard(order))):
        if path.exists():
            (folder / path.name).write_bytes(path.read_bytes())
    return str(folder)


def right(order: SampleOrder, steps: int) -> dict[int, list[int]]:
    """Sample -> input ids, straight from the files."""
    return {index: reference(order, index)[:-1].tolist() for index in range(steps * order.global_batch_size)}


class Gate:
    """Holds all reads of files whose path begins with `prefix`, until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
        self.opened = threading.Event()
        self.held = 0
        read = LocalCopy.read

        def gated(copy: LocalCopy, file: int, *arguments: object) -> memoryview:
            if copy.path(file).startswith(prefix) and not self.opened.is_set():
                self.held += 1
                self.opened.wait(20)
            return read(copy, file, *arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(LocalCopy, "read", gated)


def delay_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every read of a file take 2 ms more."""
    preadv = os.preadv

    def slow(*arguments: object) -> int:
        time.sleep(0.002)
        return preadv(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(copies_module.os, "preadv", slow)


def test_slow_reads_are_flagged_and_logged_once(
    order: SampleOrder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delay_reads(monkeypatch)
    watcher = Watcher()
    settings = reading(order, slow_seconds=0.001, verify=False)
    with caplog.at_level(logging.WARNING), make(order, observer=watcher, reading=settings, stop_step=2) as loader:
        list(loader)
    assert watcher.samples_read() == 16 and all(slow and seconds >= 0.002 for *_, seconds, _, slow in watcher.reads)
    assert len(caplog.messages) == 1
    assert re.match(r"slow read: 0\.\d\d s at offset \d+ of .*_shuffled\.ds \(source ", caplog.messages[0])


@pytest.mark.parametrize(("from_memory", "at_once"), [(True, 1), (False, 3)])
def test_one_thread_reads_alone_while_reads_come_from_memory(
    order: SampleOrder, monkeypatch: pytest.MonkeyPatch, from_memory: bool, at_once: int
) -> None:
    """Several would only wait for each other, at the interpreter's lock; on slower storage all of them read."""
    delay_reads(monkeypatch)
    monkeypatch.setattr(pool_module, "QUICK_SECONDS", 10.0 if from_memory else 0.0)
    monkeypatch.setattr(pool_module, "LATE_SECONDS", 10.0)  # a machine may be so busy that a read takes long here
    watcher = Watcher()
    with make(order, observer=watcher, reading=reading(order, 20, threads=3), stop_step=40) as loader:
        assert len(list(loader)) == 40
    assert watcher.most_in_flight == at_once


def test_a_read_that_hangs_is_visible_and_close_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Opening a FIFO without a writer blocks in the kernel, as a read on a dead mount does."""
    order = small_order(tmp_path)
    path = shard(order)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr("harness.data.loader.CLOSE_SECONDS", 0.2)
    watcher = Watcher()
    loader = make(order, observer=watcher, reading=reading(order, threads=1))
    waiting = Waiter(loader)
    assert watcher.began.wait(10)
    assert watcher.in_flight == {0: 0} and not watcher.reads
    loader.close()
    assert isinstance(waiting.result(), RuntimeError)
    assert "data-reader-0" in caplog.text and "still hang in a read" in caplog.text
    for _ in range(40):  # the mount comes back: the threads see that they are to end
        os.close(os.open(path, os.O_RDWR))
        time.sleep(0.01)
    wait_for(lambda: not any(thread.name.startswith("data-reader") for thread in threading.enumerate()))


def test_a_file_that_is_cut_off_ends_the_run(
    tmp_path: Path, quick_retries: None, caplog: pytest.LogCaptureFixture
) -> None:
    order = small_order(tmp_path)
    watcher = Watcher()
    with make(order, observer=watcher, reading=reading(order, threads=1)) as loader:
        batch = next(loader)
        os.truncate(shard(order), 100)
        with pytest.raises(DataError) as first:
            while True:
                batch = next(loader)  # what had been read before is right, and so is what still is there
                assert all(max(row) < 100 for row in all_inputs([batch]).values())
        with pytest.raises(DataError) as second:
            next(loader)
    message = str(first.value)
    assert f" of {shard(order)} (data.sources.web.path={tmp_path}/web); gave up after " in message
    assert (
        "the file ends at byte 100" in message or "the file has 100 bytes, and had 4000 when the run started" in message
    )
    assert "cannot read 18 bytes at offset " in message and "data.sources.web.replicas" in message
    assert second.value is first.value
    assert {number for _, number in watcher.errors} == {74}
    assert "failed: the file " in caplog.text


@pytest.mark.parametrize("missing", ["shard", "folder"])
def test_an_outage_is_waited_out(tmp_path: Path, quick_retries: None, missing: str) -> None:
    """Files that are gone and come back, as under a mount that is lost for a while."""
    order = small_order(tmp_path)
    place = shard(order) if missing == "shard" else shard(order).parent
    watcher = Watcher()
    with make(order, observer=watcher, reading=reading(order, 4, **QUICK), stop_step=20) as loader:
        wait_for(lambda: watcher.queued and watcher.queued[-1] == 4)
        place.rename(tmp_path / "away")
        loader._pool._reader.close()  # the handles are stale
        batches = [next(loader) for _ in range(4)]  # what was read ahead goes on
        waiting = Waiter(loader)
        wait_for(lambda: watcher.stalls and len(watcher.errors) > 10)
        assert waiting.is_waiting()
        (tmp_path / "away").rename(place)
        batches += [waiting.result(), *loader]  # type: ignore[list-item]
        wait_for(lambda: len(watcher.stalls) == 2)
    assert [batch.step for batch in batches] == list(range(1, 21))
    assert all_inputs(batches) == right(order, 20)
    assert {number for _, number in watcher.errors} == {2}
    begin, end = watcher.stalls
    assert begin.source == "web" and begin.path == str(shard(order)) and "No such file" in begin.reason
    assert begin.served_by is None and end.served_by == str(shard(order)) and end.seconds > begin.seconds
    assert not watcher.in_flight


def test_an_outage_without_end_ends_the_run(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    shard(order).unlink()
    settings = reading(order, hedge_seconds=0.05, timeout_seconds=0.1, give_up_seconds=0.2)
    with make(order, reading=settings) as loader, pytest.raises(DataError) as raised:
        next(loader)
    message = str(raised.value)
    assert f"shard.ds (data.sources.web.path={tmp_path}/web); gave up after 0." in message
    assert f"{shard(order)}: No such file or directory. Restore the file" in message


def test_hung_reads_are_hedged_with_a_replica_and_late_answers_harm_nothing(
    tmp_path: Path, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = small_order(tmp_path)
    replica = copy_of(order, tmp_path / "replica")
    gate = Gate(monkeypatch, str(shard(order).parent))
    watcher = Watcher()
    settings = reading(order, 3, threads=2, replicas={"web": [replica]}, **QUICK)
    with make(order, observer=watcher, reading=settings, stop_step=60) as loader:
        batches = [next(loader) for _ in range(30)]
        assert gate.held and watcher.stalls[0].reason == "no answer yet"
        gate.opened.set()
        batches += list(loader)
        wait_for(lambda: watcher.stalls[-1].served_by is not None)
    assert all_inputs(batches) == right(order, 60)
    assert [key for key in watcher.keys if key[1] == "web"] == watcher.keys
    assert watcher.stalls[-1].served_by is not None


def test_hung_threads_are_replaced_up_to_a_bound(
    tmp_path: Path, quick_retries: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = small_order(tmp_path)
    gate = Gate(monkeypatch, str(tmp_path))
    watcher = Watcher()
    settings = reading(order, 30, threads=2, slow_seconds=0.01, **QUICK)
    with make(order, observer=watcher, reading=settings, stop_step=40) as loader:
        wait_for(lambda: len(watcher.in_flight) == 64 and watcher.timeouts)
        time.sleep(0.1)  # room to do wrong
        assert gate.held == 64 == len(watcher.in_flight)
        gate.opened.set()
        batches = list(loader)
        wait_for(lambda: len(loader._pool._threads) <= 2)
    assert all_inputs(batches) == right(order, 40)


def test_a_missing_primary_is_served_by_a_store(tmp_path: Path, quick_retries: None) -> None:
    import fsspec

    order = small_order(tmp_path)
    expected = right(order, 10)
    write_checksums(shard(order))
    store = fsspec.filesystem("memory")
    for path in (shard(order), sums_path(shard(order))):
        store.pipe_file(f"/bucket/web/{path.name}", path.read_bytes())
    shard(order).unlink()
    watcher = Watcher()
    settings = reading(order, replicas={"web": ["memory://bucket/web"]}, **QUICK)
    with make(order, observer=watcher, reading=settings, stop_step=10) as loader:
        assert all_inputs(list(loader)) == expected
    assert ("memory://bucket/web", "web") in watcher.keys
    damaged = bytearray(store.cat_file("/bucket/web/shard.ds"))
    damaged[50] ^= 1
    store.pipe_file("/bucket/web/shard.ds", bytes(damaged))
    settings = dataclasses.replace(settings, give_up_seconds=0.5)
    with make(order, reading=settings) as loader, pytest.raises(DataError) as raised:
        list(loader)
    assert "memory://bucket/web/shard.ds: block 0 at offset 0 has the checksum" in str(raised.value)


def test_a_damaged_block_is_read_from_the_replica(
    tmp_path: Path, quick_retries: None, caplog: pytest.LogCaptureFixture
) -> None:
    order = small_order(tmp_path)
    write_checksums(shard(order))
    expected = right(order, 10)
    replica = copy_of(order, tmp_path / "replica")
    flip(shard(order), 2000)
    watcher = Watcher()
    settings = reading(order, replicas={"web": [replica]}, **QUICK)
    with make(order, observer=watcher, reading=settings, stop_step=10) as loader:
        assert all_inputs(list(loader)) == expected
    assert {number for _, number in watcher.errors} == {74}
    assert f"of {shard(order)} failed: block 0 at offset 0 has the checksum" in caplog.text


def test_a_damaged_block_without_a_replica_ends_the_run(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    write_checksums(shard(order))
    flip(shard(order), 2000)
    with make(order, reading=reading(order, **QUICK)) as loader, pytest.raises(DataError) as raised:
        list(loader)
    assert f"{shard(order)}: block 0 at offset 0 has the checksum " in str(raised.value)
    assert " is right" in str(raised.value) and "2 attempts" in str(raised.value)
    with make(order, reading=reading(order, verify=False, **QUICK), stop_step=2) as loader:
        list(loader)  # who does not want to know is not told


def test_damaged_checksums_are_blamed_themselves(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    flip(write_checksums(shard(order)), 40)
    with make(order, reading=reading(order, **QUICK)) as loader, pytest.raises(DataError) as raised:
        list(loader)
    assert f"{sums_path(shard(order))} itself is damaged" in str(raised.value)


def test_a_file_replaced_under_the_run_is_not_read(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    with make(order, reading=reading(order, **QUICK)) as loader:
        next(loader)
        write_token_file(tmp_path / "new", [[7] * 2000], "shard.ds")
        os.utime(tmp_path / "new" / "shard.ds", ns=(1, 1))
        (tmp_path / "new" / "shard.ds").rename(shard(order))
        loader._pool._reader.close()
        with pytest.raises(DataError, match="replaced or written to after the run had started"):
            for batch in loader:
                assert all(row != [7] * 8 for row in all_inputs([batch]).values())


def test_tokens_outside_the_vocabulary(tmp_path: Path, quick_retries: None) -> None:
    order = small_order(tmp_path)
    with make(order, vocab_size=50) as loader, pytest.raises(DataError) as error:
        list(zip(range(100), loader, strict=False))
    assert "token " in str(error.value) and f"{shard(order)}: token" in str(error.value)
    assert "model.vocab_size=50" in str(error.value) and "at byte " in str(error.value)


def test_a_passing_error_is_retried(order: SampleOrder, quick_retries: None, monkeypatch: pytest.MonkeyPatch) -> None:
    preadv, lock, calls = os.preadv, threading.Lock(), [0]

    def flaky(handle: int, buffers: list[memoryview], offset: int) -> int:
        with lock:
            calls[0] += 1
            number = calls[0]
        if number in (2, 5, 6):
            raise OSError(116, os.strerror(116))  # a stale handle
        if number == 8:
            return preadv(handle, [buffers[0][:10]], offset)  # the rest comes with the next call
        return preadv(handle, buffers, offset)

    monkeypatch.setattr(copies_module.os, "preadv", flaky)
    watcher = Watcher()
    with make(order, observer=watcher, stop_step=2) as loader:
        batches = list(loader)
    assert [errno for _, errno in watcher.errors] == [116] * 3
    monkeypatch.undo()
    assert all_inputs(batches) == right(order, 2)


def open_files(folder: Path) -> int:
    """Files in `folder` that this process has open."""
    count = 0
    for handle in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the handle of this very look is gone already
            count += os.readlink(handle).startswith(str(folder))
    return count


def test_keeps_few_files_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copies_module, "OPEN_FILES", 3)
    for number in range(10):
        write_token_file(tmp_path / "web", [[number + 1] * 40 + [0]], f"{number}.ds")
    source = open_source("web", tmp_path / "web")
    order = SampleOrder([source], [StageConfig(weights={"web": 1})], seed=1, seq_len=8, global_batch_size=10)
    with make(order, reading=reading(order, threads=2), stop_step=20) as loader:
        rows = all_inputs(list(loader))
        assert 1 <= open_files(tmp_path) <= 3 + 2
    assert rows == {index: reference(order, index)[:-1].tolist() for index in range(200)}
    assert open_files(tmp_path) == 0


def flip(path: Path, at: int) -> None:
    """Turn one bit over."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
