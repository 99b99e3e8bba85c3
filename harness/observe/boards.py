"""Collects a node's rank boards: training, phases, checkpoints, garbage collection, and (in `read_metrics`) reads."""

import logging
import os
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from harness.observe.board import HISTOGRAMS, PHASES, RESTORE_STAGES, SAVE_STAGES, Board, RankState
from harness.observe.histograms import add_histogram, total
from harness.observe.read_metrics import ReadMetrics

log = logging.getLogger(__name__)

BOARD_NAME = re.compile(r"rank-(\d{5,})\.board")
TRIES_BEFORE_WARNING = 3
"""A board being made looks foreign for an instant; one that still does after so many scrapes is worth a line."""


class BoardsCollector:
    """Reads every board in `folder`; boards may come and go.

    What holds for the whole run (tokens, steps, loss, expectations, planned pauses) is exported from rank 0's board, and
    so by the one node that runs rank 0. Everything else is this node's: sums over its ranks unless the metric says
    otherwise.
    """

    name = "boards"

    def __init__(self, folder: Path) -> None:
        self._folder = _BoardFolder(folder)
        self._reads = ReadMetrics()

    def collect(self) -> Iterable[Metric]:
        boards = self._folder.refresh()
        if 0 in boards:
            yield from _run_metrics(boards[0])
        if boards:
            yield from _phase_metrics(boards)
            yield from _checkpoint_metrics(list(boards.values()))
            yield from _line_metrics(list(boards.values()))
            yield _gc_pauses(list(boards.values()))
            yield from self._reads.collect(boards)


class _BoardFolder:
    """Keeps the folder's boards mapped; skips what is torn, foreign or of another version."""

    def __init__(self, folder: Path) -> None:
        self._path = folder
        self._open: dict[int, tuple[int, Board]] = {}  # rank -> inode, board
        self._refused: dict[str, int] = {}

    def refresh(self) -> dict[int, Board]:
        """Rank -> board, by rank."""
        try:
            with os.scandir(self._path) as entries:
                present = {entry.name: entry.inode() for entry in entries}
        except FileNotFoundError:
            present = {}
        found: dict[int, tuple[int, Board]] = {}
        for name, inode in sorted(present.items()):
            match = BOARD_NAME.fullmatch(name)
            if match is None:
                continue
            rank = int(match[1])
            known = self._open.get(rank)
            if known is not None and known[0] == inode:
                found[rank] = known
            elif (board := self._map(name)) is not None:
                found[rank] = (inode, board)
        self._open = found
        return {rank: board for rank, (_, board) in found.items()}

    def _map(self, name: str) -> Board | None:
        try:
            board = Board.open_for_read(self._path / name)
        except (OSError, ValueError) as error:
            self._refused[name] = self._refused.get(name, 0) + 1
            if self._refused[name] == TRIES_BEFORE_WARNING:
                log.warning("board %s is left out: %s", name, error)
            return None
        self._refused.pop(name, None)
        return board


COUNTERS = {
    "harness_train_tokens_total": ("tokens_total", "Tokens trained by the whole run in this attempt"),
    "harness_train_steps_total": ("steps_total", "Steps done in this attempt"),
    "harness_train_nonfinite_total": ("nonfinite_total", "Steps with a NaN or Inf in loss or gradient norm"),
    "harness_train_skipped_steps_total": ("skipped_total", "Steps whose update was left out"),
}
STEP_GAUGES = {  # meaningless before the first step of this attempt
    "harness_train_loss": ("loss", "Training loss of the last step"),
    "harness_train_grad_norm": ("grad_norm", "Gradient norm of the last step, before clipping"),
    "harness_train_learning_rate": ("learning_rate", "Learning rate of the last step"),
}
KNOWN_GAUGES = {  # 0 says: not known
    "harness_train_last_step_timestamp_seconds": ("last_step_time", "Unix time at which the last step ended"),
    "harness_train_expected_tokens_per_second": ("expected_tokens_per_second", "What this run should reach"),
    "harness_train_expected_step_seconds": ("expected_step_seconds", "What a step of this run should take"),
    "harness_train_model_flops_utilization_ratio": ("mfu", "Model FLOPs per second over the GPUs' peak"),
}


def _run_metrics(board: Board) -> Iterable[Metric]:
    """What rank 0 says about the whole run."""
    for name, (cell, text) in COUNTERS.items():
        yield CounterMetricFamily(name, text, value=board.get(cell))
    if board.get("last_step_time"):
        for name, (cell, text) in STEP_GAUGES.items():
            yield GaugeMetricFamily(name, text, value=board.get(cell))
    for name, (cell, text) in KNOWN_GAUGES.items():
        if value := board.get(cell):
            yield GaugeMetricFamily(name, text, value=value)
    if board.get("step") or board.get("state") >= RankState.training:  # 0 before a restore would be wrong
        yield GaugeMetricFamily("harness_train_step", "Global step; survives restarts", value=board.get("step"))
    pause = "1 during start-up, evaluation and planned pauses, and one rate window longer"
    yield GaugeMetricFamily("harness_train_planned_pause", pause, value=_pauses(board))
    steps = HistogramMetricFamily("harness_train_step_seconds", "Wall time of a step")
    add_histogram(steps, [], board.histogram("step"))
    yield steps


def _pauses(board: Board) -> bool:
    """Whether a planned pause lasts or ended a moment ago. `pause_ends` holds even if no step comes after it to say so."""
    ends = board.get("pause_ends")
    return bool(board.get("planned_pause")) and (not ends or time.time() < ends)


def _line_metrics(boards: list[Board]) -> Iterable[Metric]:
    """Lines of the run's files that this node's ranks could not write."""
    text = "Lines of the ledger, metrics.jsonl and the like that wait for room on the disk"
    yield GaugeMetricFamily(
        "harness_run_lines_waiting", text, value=sum(board.get("lines_waiting") for board in boards)
    )
    text = "Lines of these files that are gone"
    yield CounterMetricFamily(
        "harness_run_lines_lost_total", text, value=sum(board.get("lines_lost") for board in boards)
    )


def _phase_metrics(boards: dict[int, Board]) -> Iterable[Metric]:
    phases = CounterMetricFamily(
        "harness_train_phase_seconds_total", "Wall time by phase, mean over the node's ranks", labels=["phase"]
    )
    for index, phase in enumerate(PHASES):
        seconds = sum(board.get("phase_seconds", index) for board in boards.values())
        phases.add_metric([phase], seconds / len(boards))
    yield phases
    for name, cell, text in (
        ("harness_train_rank_compute_seconds_total", "compute_seconds", "Time a rank computed"),
        ("harness_train_rank_comm_wait_seconds_total", "comm_wait_seconds", "Time a rank waited in collectives"),
    ):
        family = CounterMetricFamily(name, text, labels=["rank"])
        for rank, board in boards.items():
            family.add_metric([str(rank)], board.get(cell))
        yield family


def _checkpoint_metrics(boards: list[Board]) -> Iterable[Metric]:
    save = HistogramMetricFamily("harness_ckpt_save_seconds", "Saving, by stage and rank", labels=["stage"])
    restore = HistogramMetricFamily("harness_ckpt_restore_seconds", "Restoring, by stage and rank", labels=["stage"])
    for family, cells, stages in ((save, "save", SAVE_STAGES), (restore, "restore", RESTORE_STAGES)):
        _add_rows(family, boards, cells, stages)
        yield family
    for name, cell, text in (
        ("harness_ckpt_bytes_total", "ckpt_bytes_total", "Bytes written to checkpoints"),
        ("harness_ckpt_failures_total", "ckpt_failures_total", "Saves that failed"),
    ):
        yield CounterMetricFamily(name, text, value=sum(board.get(cell) for board in boards))
    last = max(boards, key=lambda board: board.get("ckpt_last_success_time"))
    if when := last.get("ckpt_last_success_time"):
        text = "Unix time at which a checkpoint became complete"
        yield GaugeMetricFamily("harness_ckpt_last_success_timestamp_seconds", text, value=when)
        step = last.get("ckpt_last_success_step")
        yield GaugeMetricFamily("harness_ckpt_last_success_step", "Its global step", value=step)


def _gc_pauses(boards: list[Board]) -> Metric:
    family = HistogramMetricFamily("harness_gc_pause_seconds", "Python's collections", labels=["generation"])
    _add_rows(family, boards, "gc", [str(row) for row in range(HISTOGRAMS["gc"][0])])
    return family


def _add_rows(family: HistogramMetricFamily, boards: list[Board], cells: str, labels: Sequence[str]) -> None:
    for row, label in enumerate(labels):
        add_histogram(family, [label], total(board.histogram(cells, row) for board in boards))
