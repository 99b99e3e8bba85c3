import dataclasses
import errno
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.data.observer import Stall
from harness.observe.board import READ_BUCKETS, Board
from harness.observe.boards import BoardsCollector
from harness.observe.reads import BoardReads
from harness.run.files import read_json_lines
from harness.run.folder import Ledger
from tests.observe.pages import Page, page_of
from tests.waiting import wait_for

MakeBoard = Callable[[int], Board]
KEYS = [("/fsx", "web"), ("/fsx", "code"), ("/scratch", "math")]


@pytest.fixture
def scrape(tmp_path: Path) -> Callable[[], Page]:
    collector = BoardsCollector(tmp_path / "boards")
    return lambda: page_of(collector.collect())


def reads_of(board: Board, keys: list[tuple[str, str]] = KEYS) -> BoardReads:
    reads = BoardReads(board, Ledger(board.path.with_name("events.jsonl"), 3, "node-a"))
    reads.register(keys)
    return reads


def test_zero_from_the_moment_the_data_is_open(scrape, boards: MakeBoard) -> None:
    board = boards(0)
    assert not scrape().series("harness_data_read_seconds_count")
    reads_of(board)
    page = scrape()
    for mount, source in KEYS:
        assert page.get("harness_data_read_seconds_count", mount=mount, source=source) == 0
        assert page.get("harness_data_slow_reads_total", mount=mount, source=source) == 0
    for mount in ("/fsx", "/scratch"):
        assert page.get("harness_data_read_oldest_inflight_seconds", mount=mount) == 0
        assert page.get("harness_data_read_errors_total", mount=mount, errno="EIO") == 0
    assert page.get("harness_data_worker_cpu_seconds_total") == 0


def test_reads_are_summed_over_ranks_by_mount_and_source(scrape, boards: MakeBoard) -> None:
    first = reads_of(boards(0))
    second = reads_of(boards(1), list(reversed(KEYS)))  # the same keys in another order
    first.finished(0, 0, 0.004, 1000, slow=False)
    first.finished(0, 0, 0.3, 1000, slow=True)
    second.finished(0, 2, 100.0, 500, slow=True)  # also ("/fsx", "web")
    page = scrape()
    web = {"mount": "/fsx", "source": "web"}
    assert page.types["harness_data_read_seconds"] == "histogram"
    buckets = [page.get("harness_data_read_seconds_bucket", le=repr(bound), **web) for bound in READ_BUCKETS]
    assert buckets == [float(bound >= 0.004) + float(bound >= 0.3) for bound in READ_BUCKETS]
    assert page.get("harness_data_read_seconds_bucket", le="+Inf", **web) == 3
    assert page.get("harness_data_read_seconds_count", **web) == 3
    assert page.get("harness_data_read_seconds_sum", **web) == pytest.approx(100.304)
    assert page.get("harness_data_read_bytes_total", **web) == 2500
    assert page.get("harness_data_slow_reads_total", **web) == 2
    assert page.get("harness_data_read_bytes_total", mount="/scratch", source="math") == 0


def test_the_oldest_read_in_flight_by_mount(scrape, boards: MakeBoard) -> None:
    board, other = boards(0), boards(1)
    reads_of(board)
    reads_of(other)
    now = time.time()
    for slot, (since, key) in enumerate(((now - 10, 0), (now - 40, 1), (now - 3, 2))):
        board.set("in_flight_key", key, slot)
        board.set("in_flight_since", since, slot)
    other.set("in_flight_key", 2, 5)
    other.set("in_flight_since", now - 20, 5)
    page = scrape()
    assert page.get("harness_data_read_oldest_inflight_seconds", mount="/fsx") == pytest.approx(40, abs=5)
    assert page.get("harness_data_read_oldest_inflight_seconds", mount="/scratch") == pytest.approx(20, abs=5)


def test_reads_of_a_dead_process_are_over(scrape, boards: MakeBoard) -> None:
    board = boards(0)
    reads = reads_of(board)
    reads.started(0, 0)
    board.set("in_flight_since", time.time() - 100, 0)
    board.set("pid", os.getpid())
    assert (scrape().get("harness_data_read_oldest_inflight_seconds", mount="/fsx") or 0) > 90
    dead = subprocess.Popen(["true"])
    dead.wait()
    board.set("pid", dead.pid)
    assert scrape().get("harness_data_read_oldest_inflight_seconds", mount="/fsx") == 0


def test_errors_bear_the_errno_they_had(scrape, boards: MakeBoard) -> None:
    reads = reads_of(boards(0))
    reads.failed(0, 0, errno.EIO)
    reads.failed(0, 1, errno.EIO)
    assert scrape().get("harness_data_read_errors_total", mount="/fsx", errno="EIO") == 2
    reads.failed(0, 0, errno.ESTALE)
    reads.failed(0, 2, errno.ENOENT)
    reads.failed(0, 1, 9999)
    page = scrape()
    assert page.get("harness_data_read_errors_total", mount="/fsx", errno="EIO") == 2
    assert page.get("harness_data_read_errors_total", mount="/fsx", errno="ESTALE") == 1
    assert page.get("harness_data_read_errors_total", mount="/fsx", errno="9999") == 1
    assert page.get("harness_data_read_errors_total", mount="/scratch", errno="ENOENT") == 1
    assert scrape().get("harness_data_read_errors_total", mount="/fsx", errno="ESTALE") == 1


def test_a_read_that_is_given_up_counts_and_stays_in_flight(scrape, boards: MakeBoard) -> None:
    board = boards(0)
    reads = reads_of(board)
    reads.started(1, 0)
    board.set("in_flight_since", time.time() - 40, 1)
    reads.timed_out(1, 0)
    page = scrape()
    assert page.get("harness_data_read_errors_total", mount="/fsx", errno="ETIMEDOUT") == 1
    assert page.get("harness_data_read_oldest_inflight_seconds", mount="/fsx") >= 40


def test_stalls_reach_the_ledger(boards: MakeBoard) -> None:
    board = boards(0)
    board.set("step", 12)
    reads = reads_of(board)
    stall = Stall("web", "/fsx/web/0.ds", 4096, "no answer yet", 3.01234, 4)
    reads.stall_began(stall)
    reads.stall_ended(dataclasses.replace(stall, seconds=60.0, reads=9, served_by="/copy/web/0.ds"))
    path = board.path.with_name("events.jsonl")
    wait_for(lambda: len(list(read_json_lines(path))) == 2, "both events are in the ledger", 20)
    events = list(read_json_lines(path))
    shared = {
        "event": "data_stall",
        "attempt": 3,
        "step": 12,
        "node": "node-a",
        "source": "web",
        "file": "/fsx/web/0.ds",
    }
    assert events[0].items() >= {**shared, "phase": "begin", "offset": 4096, "seconds": 3.012, "reads": 4}.items()
    assert events[0]["why"] == "reads of web are late, first at 4096 of /fsx/web/0.ds: no answer yet"
    assert "served_by" not in events[0]
    assert events[1]["why"] == "over: 9 reads of web were late, the last came from /copy/web/0.ds"
    assert events[1].items() >= {**shared, "phase": "end", "seconds": 60.0, "served_by": "/copy/web/0.ds"}.items()


def test_errors_go_on_after_a_restart_of_the_rank(scrape, boards: MakeBoard) -> None:
    reads_of(boards(0)).failed(0, 0, errno.EIO)
    scrape()
    reads_of(boards(0)).failed(0, 0, errno.EIO)
    assert scrape().get("harness_data_read_errors_total", mount="/fsx", errno="EIO") == 2


def test_the_queue_is_the_worst_rank_and_cpu_the_sum(scrape, boards: MakeBoard) -> None:
    for rank, batches in ((0, 8), (1, 2)):
        reads_of(boards(rank)).queue(batches, 1.5)
    boards(2)  # has not opened its data: says nothing about queues
    page = scrape()
    assert page.get("harness_data_queue_batches") == 2
    assert page.get("harness_data_worker_cpu_seconds_total") == 3


@pytest.mark.parametrize("text", ["", "[", "{}", '[{"mount": 1}]', '["x"]', '[{"mount": "/a", "source": "b", "c": 1}]'])
def test_torn_or_foreign_keys_are_left_out(scrape, boards: MakeBoard, text: str) -> None:
    board = boards(0)
    reads_of(boards(1))
    board.path.with_suffix(".keys").write_text(text)
    assert scrape().get("harness_data_read_seconds_count", mount="/fsx", source="web") == 0
    reads_of(board).finished(0, 0, 0.1, 10, slow=False)
    assert scrape().get("harness_data_read_seconds_count", mount="/fsx", source="web") == 1
