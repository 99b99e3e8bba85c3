import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.observe.board import (
    HISTOGRAMS,
    PHASES,
    RESTORE_STAGES,
    SAVE_STAGES,
    SCALARS,
    STEP_BUCKETS,
    VECTORS,
    Board,
    RankState,
)
from harness.observe.boards import BoardsCollector
from tests.observe.pages import Page, page_of

MakeBoard = Callable[[int], Board]


@pytest.fixture
def collector(tmp_path: Path) -> BoardsCollector:
    return BoardsCollector(tmp_path / "boards")


def scrape(collector: BoardsCollector) -> Page:
    return page_of(collector.collect())


def finish_step(board: Board, seconds: float = 0.4) -> None:
    board.set("state", RankState.training)
    board.add("steps_total", 1)
    board.add("step", 1)
    board.add("tokens_total", 1000)
    board.set("loss", 2.5)
    board.set("grad_norm", 0.7)
    board.set("learning_rate", 3e-4)
    board.set("last_step_time", 1_700_000_000.0)
    board.observe("step", seconds)


def test_no_cell_overlaps_another(boards: MakeBoard) -> None:
    board = boards(0)
    places = [(name, 0) for name in SCALARS] + [(name, i) for name, length in VECTORS.items() for i in range(length)]
    for value, (name, index) in enumerate(places, start=1):
        board.set(name, value, index)
    for name, (rows, bounds) in HISTOGRAMS.items():
        for row in range(rows):
            for seconds in (0.0, 2 * bounds[-1]):  # the first cell of a row, the last bucket, the sum
                board.observe(name, seconds, row)
    assert [board.get(name, index) for name, index in places] == list(range(1, len(places) + 1))
    for name, (rows, bounds) in HISTOGRAMS.items():
        expected = [1.0] + [0.0] * (len(bounds) - 1) + [1.0]
        for row in range(rows):
            assert board.histogram(name, row).counts == expected, name
            assert board.histogram(name, row).sum == 2 * bounds[-1], name


def test_nothing_before_the_first_board(collector: BoardsCollector) -> None:
    assert not scrape(collector).samples


def test_counters_start_at_zero_and_gauges_are_absent(collector: BoardsCollector, boards: MakeBoard) -> None:
    boards(0)
    page = scrape(collector)
    for name in ("tokens", "steps", "nonfinite", "skipped_steps"):
        assert page.get(f"harness_train_{name}_total") == 0
    assert page.get("harness_ckpt_failures_total") == 0
    assert page.get("harness_train_step_seconds_count") == 0
    assert page.get("harness_train_phase_seconds_total", phase="data_wait") == 0
    for name in (
        "harness_train_loss",
        "harness_train_grad_norm",
        "harness_train_learning_rate",
        "harness_train_step",
        "harness_train_last_step_timestamp_seconds",
        "harness_train_expected_tokens_per_second",
        "harness_train_expected_step_seconds",
        "harness_train_model_flops_utilization_ratio",
        "harness_ckpt_last_success_timestamp_seconds",
        "harness_ckpt_last_success_step",
        "harness_data_read_seconds_count",
        "harness_data_queue_batches",
    ):
        assert not page.series(name), name


def test_the_head_exports_the_run_from_rank_0(collector: BoardsCollector, boards: MakeBoard) -> None:
    first, second = boards(0), boards(1)
    finish_step(first)
    finish_step(first, 0.6)
    second.set("tokens_total", 77)
    first.set("expected_tokens_per_second", 5000)
    first.set("expected_step_seconds", 0.2)
    first.set("mfu", 0.31)
    first.set("planned_pause", 1)
    first.set("nonfinite_total", 3)
    first.set("skipped_total", 2)
    page = scrape(collector)
    assert page.get("harness_train_tokens_total") == 2000
    assert page.get("harness_train_steps_total") == 2
    assert page.get("harness_train_step") == 2
    assert page.get("harness_train_loss") == 2.5
    assert page.get("harness_train_grad_norm") == 0.7
    assert page.get("harness_train_learning_rate") == 3e-4
    assert page.get("harness_train_last_step_timestamp_seconds") == 1_700_000_000
    assert page.get("harness_train_expected_tokens_per_second") == 5000
    assert page.get("harness_train_expected_step_seconds") == 0.2
    assert page.get("harness_train_model_flops_utilization_ratio") == 0.31
    assert page.get("harness_train_planned_pause") == 1
    assert page.get("harness_train_nonfinite_total") == 3
    assert page.get("harness_train_skipped_steps_total") == 2


def test_other_nodes_export_no_run_metrics(tmp_path: Path, boards: MakeBoard) -> None:
    finish_step(boards(8))
    page = scrape(BoardsCollector(tmp_path / "boards"))
    assert page.get("harness_train_rank_compute_seconds_total", rank="8") == 0
    of_the_run = {name for name in page.names() if name.startswith("harness_train_")}
    assert of_the_run == {
        "harness_train_phase_seconds_total",
        "harness_train_rank_compute_seconds_total",
        "harness_train_rank_comm_wait_seconds_total",
    }


def test_a_nan_loss_is_shown_as_it_is(collector: BoardsCollector, boards: MakeBoard) -> None:
    board = boards(0)
    finish_step(board)
    board.set("loss", math.nan)
    loss = scrape(collector).get("harness_train_loss")
    assert loss is not None and math.isnan(loss)


def test_the_step_histogram_is_cumulative(collector: BoardsCollector, boards: MakeBoard) -> None:
    board = boards(0)
    for seconds in (0.05, 0.051, 0.4, 1000.0):  # on a bound, just above it, inside, beyond the last
        board.observe("step", seconds)
    page = scrape(collector)
    assert page.types["harness_train_step_seconds"] == "histogram"
    buckets = [page.get("harness_train_step_seconds_bucket", le=repr(bound)) for bound in STEP_BUCKETS]
    assert buckets == [1, 2, 2, 2] + [3] * (len(STEP_BUCKETS) - 4)
    assert page.get("harness_train_step_seconds_bucket", le="+Inf") == 4
    assert page.get("harness_train_step_seconds_count") == 4
    assert page.get("harness_train_step_seconds_sum") == pytest.approx(1000.501)


def test_phases_are_the_mean_over_ranks_and_add_up_to_wall_time(collector: BoardsCollector, boards: MakeBoard) -> None:
    wall = 70.0
    for rank in (0, 1):
        board = boards(rank)
        for index in range(len(PHASES)):
            board.set("phase_seconds", wall / len(PHASES) + (index - 3) * (1 if rank else -2), index)
    page = scrape(collector)
    phases = [page.get("harness_train_phase_seconds_total", phase=phase) or 0.0 for phase in PHASES]
    assert phases[0] == pytest.approx((10 + 6 + 10 - 3) / 2)
    assert sum(phases) == pytest.approx(wall)


def test_each_rank_has_its_compute_and_wait(collector: BoardsCollector, boards: MakeBoard) -> None:
    for rank in (0, 3, 100_000):
        board = boards(rank)
        board.set("compute_seconds", 10.0 + rank)
        board.set("comm_wait_seconds", 1.0 + rank)
    page = scrape(collector)
    for rank in (0, 3, 100_000):
        assert page.get("harness_train_rank_compute_seconds_total", rank=str(rank)) == 10.0 + rank
        assert page.get("harness_train_rank_comm_wait_seconds_total", rank=str(rank)) == 1.0 + rank


def test_checkpoints_are_summed_over_ranks(collector: BoardsCollector, boards: MakeBoard) -> None:
    for rank in (0, 1):
        board = boards(rank)
        board.observe("save", 2.0, SAVE_STAGES.index("write"))
        board.observe("restore", 0.5, RESTORE_STAGES.index("verify"))
        board.set("ckpt_bytes_total", 100)
        board.set("ckpt_failures_total", rank)
    board.set("ckpt_last_success_time", 1_700_000_000.0)
    board.set("ckpt_last_success_step", 40)
    page = scrape(collector)
    assert page.get("harness_ckpt_save_seconds_count", stage="write") == 2
    assert page.get("harness_ckpt_save_seconds_sum", stage="write") == 4
    assert page.get("harness_ckpt_save_seconds_bucket", stage="write", le="1.0") == 0
    assert page.get("harness_ckpt_save_seconds_bucket", stage="write", le="3.0") == 2
    assert page.get("harness_ckpt_save_seconds_count", stage="commit") == 0
    assert page.get("harness_ckpt_restore_seconds_count", stage="verify") == 2
    assert page.get("harness_ckpt_bytes_total") == 200
    assert page.get("harness_ckpt_failures_total") == 1
    assert page.get("harness_ckpt_last_success_timestamp_seconds") == 1_700_000_000
    assert page.get("harness_ckpt_last_success_step") == 40


def test_gc_pauses_by_generation(collector: BoardsCollector, boards: MakeBoard) -> None:
    boards(0).observe("gc", 0.3, row=2)
    boards(1).observe("gc", 0.002, row=2)
    page = scrape(collector)
    assert page.get("harness_gc_pause_seconds_count", generation="2") == 2
    assert page.get("harness_gc_pause_seconds_bucket", generation="2", le="0.005") == 1
    assert page.get("harness_gc_pause_seconds_count", generation="0") == 0


def test_boards_may_come_and_go(collector: BoardsCollector, boards: MakeBoard) -> None:
    scrape(collector)
    boards(0)
    assert [s["rank"] for s in scrape(collector).series("harness_train_rank_compute_seconds_total")] == ["0"]
    second = boards(1)
    assert len(scrape(collector).series("harness_train_rank_compute_seconds_total")) == 2
    second.path.unlink()
    assert len(scrape(collector).series("harness_train_rank_compute_seconds_total")) == 1


def test_a_board_that_replaces_another_is_read(collector: BoardsCollector, boards: MakeBoard) -> None:
    old = boards(0)
    old.set("tokens_total", 5)
    scrape(collector)
    moved = old.path.with_name("aside")
    old.path.rename(moved)  # kept, so that the file system gives the new one another inode
    boards(0).set("tokens_total", 6)
    assert scrape(collector).get("harness_train_tokens_total") == 6


def test_a_restarted_rank_goes_on_counting(collector: BoardsCollector, boards: MakeBoard) -> None:
    first = boards(0)
    finish_step(first)
    assert scrape(collector).get("harness_train_tokens_total") == 1000
    del first
    again = boards(0)  # the next process of this rank
    finish_step(again)
    page = scrape(collector)
    assert page.get("harness_train_tokens_total") == 2000
    assert page.get("harness_train_step_seconds_count") == 2


def test_torn_and_foreign_files_are_left_out(
    collector: BoardsCollector, boards: MakeBoard, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    size = boards(0).path.stat().st_size
    folder = tmp_path / "boards"
    (folder / "rank-00001.board").write_bytes(b"")
    (folder / "rank-00002.board").write_bytes(b"x" * 100)
    (folder / "rank-00003.board").write_bytes(bytes(size))  # of the right size, not yet named
    (folder / "rank-00004.board").mkdir()
    (folder / "rank-x.board").write_bytes(b"")
    (folder / "rank-00000.keys.tmp").write_bytes(b"[")
    for _ in range(5):
        page = scrape(collector)
    assert [s["rank"] for s in page.series("harness_train_rank_compute_seconds_total")] == ["0"]
    warned = [record.message for record in caplog.records if "left out" in record.message]
    assert len(warned) == 4  # once each
    (folder / "rank-00001.board").unlink()
    boards(1)
    assert len(scrape(collector).series("harness_train_rank_compute_seconds_total")) == 2


def test_a_step_is_absent_until_restored(collector: BoardsCollector, boards: MakeBoard) -> None:
    board = boards(0)
    board.set("state", RankState.restoring)
    assert scrape(collector).get("harness_train_step") is None
    board.set("step", 500)
    assert scrape(collector).get("harness_train_step") == 500
    board.set("step", 0)
    board.set("state", RankState.training)
    assert scrape(collector).get("harness_train_step") == 0


@pytest.mark.parametrize(
    ("flag", "ends_in", "shown"),
    [(1.0, None, 1), (1.0, 30.0, 1), (1.0, -1.0, 0), (0.0, 30.0, 0)],
    ids=["while it lasts", "held after its end", "no step ended it", "a step ended it"],
)
def test_a_planned_pause_ends_even_if_no_step_follows_it(
    collector: BoardsCollector, boards: MakeBoard, flag: float, ends_in: float | None, shown: int
) -> None:
    board = boards(0)
    board.set("planned_pause", flag)
    board.set("pause_ends", 0.0 if ends_in is None else time.time() + ends_in)
    assert scrape(collector).get("harness_train_planned_pause") == shown


def test_lines_that_wait_are_those_of_all_ranks(collector: BoardsCollector, boards: MakeBoard) -> None:
    for rank in (0, 1):
        boards(rank).set("lines_waiting", 3)
    boards(1).set("lines_lost", 2)
    page = scrape(collector)
    assert page.get("harness_run_lines_waiting") == 6 and page.get("harness_run_lines_lost_total") == 2
