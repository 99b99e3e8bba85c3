"""When ranks are started again, and when that is given up."""

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.observe.board import Board, board_path
from harness.recovery.ranks import RestartPolicy, describe_exit
from harness.run.exit_codes import CRASH_LOOP, NONFINITE
from harness.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def policy(run: RunFolder, head: bool = True, limit: int = 2) -> RestartPolicy:
    return RestartPolicy(run, run.ledger(0, "n1"), run.path, head, limit)


def reach(run: RunFolder, step: int) -> None:
    Board.open_for_write(board_path(run.path, 0)).set("step", step)


def crash(policy: RestartPolicy) -> None:
    policy.failed({0: -9})
    if not policy.exit_code:
        policy.restarting()
        policy.restarted()


def test_crashes_with_progress_never_end_it(run: RunFolder) -> None:
    ours = policy(run)
    for step in range(10, 100, 10):
        reach(run, step)
        crash(ours)
    assert ours.exit_code == 0
    assert [event["step"] for event in run.events() if event["event"] == "restart"] == list(range(10, 100, 10))


def others_crash(policy: RestartPolicy) -> None:
    policy.restarting()
    if not policy.exit_code:
        policy.restarted()


def crash_until_the_end(ours: RestartPolicy, crash: Callable[[RestartPolicy], None]) -> None:
    for _ in range(6):
        if not ours.exit_code:
            crash(ours)


def test_crashes_without_progress_do(run: RunFolder) -> None:
    ours = policy(run)
    reach(run, 7)
    crash_until_the_end(ours, crash)
    assert ours.exit_code == CRASH_LOOP
    assert sum(event["event"] == "restart" for event in run.events()) == 3, (
        "the first got to step 7, and two more are allowed"
    )
    assert "max_restarts_without_progress=2" in next(
        event["why"] for event in run.events() if event["event"] == "gave_up"
    )


def test_crashes_of_another_nodes_ranks_count_as_well(run: RunFolder) -> None:
    """The head's own ranks are fine and only told to start again."""
    ours = policy(run)
    crash_until_the_end(ours, others_crash)
    assert ours.exit_code == CRASH_LOOP
    assert [event["event"] for event in run.events()] == ["restart", "restart", "gave_up"]


def test_restarts_count_though_the_ledger_can_not_be_written(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, lines: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ours = policy(run)
    with monkeypatch.context() as patched:
        patched.setattr("harness.run.journal.append_lines", full)
        crash_until_the_end(ours, crash)
    assert ours.exit_code == CRASH_LOOP and run.events() == []
    ours.catch_up()  # once there is room: nothing is lost
    assert [event["event"] for event in run.events() if event["event"] != "rank_failed"] == [
        "restart", "restart", "gave_up", "disk_full",
    ]  # fmt: skip


def test_a_failure_that_ends_the_job_is_no_restart_of_the_ranks(run: RunFolder) -> None:
    """The other nodes never meet again: one of them is lost."""
    ours = policy(run)
    ours.failed({0: 1})
    ours.restarting()
    assert [event["event"] for event in run.events()] == ["rank_failed"]


def test_each_try_without_progress_waits_longer(run: RunFolder) -> None:
    ours = policy(run, limit=10)
    reach(run, 7)
    waits = []
    for _ in range(7):
        waits.append(ours.restarting())
        ours.restarted()
    assert waits[0] == 0 and waits == sorted(waits) and waits[1] > 0
    assert waits[-1] == waits[-2] == 60, "never more than a minute inside the job"


def test_an_exit_that_restarting_can_not_help_ends_it_at_once(run: RunFolder) -> None:
    ours = policy(run)
    ours.failed({0: NONFINITE, 1: -15})
    assert ours.exit_code == NONFINITE


def test_only_the_head_node_counts_restarts(run: RunFolder) -> None:
    crash(policy(run, head=False))
    assert [event["event"] for event in run.events()] == ["rank_failed"]


def test_a_hang_is_not_called_a_crash(run: RunFolder) -> None:
    (run.path / "hang").touch()
    ours = policy(run)
    crash(ours)
    crash(ours)
    assert [event["reason"] for event in run.events() if event["event"] == "restart"] == ["hang", "rank_crash"]


@pytest.mark.parametrize(
    ("code", "text"), [(-9, "was killed by SIGKILL"), (1, "exited with status 1"), (-99, "was killed by signal 99")]
)
def test_exits_read_like_sentences(code: int, text: str) -> None:
    assert describe_exit(code) == text
