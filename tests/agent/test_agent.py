"""What an agent says at the end, from what its launcher and its ranks have left."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import harness.run.attempt as attempt_module
import harness.run.files as files_module
from harness.agent.agent import Agent
from harness.agent.data import NodeData, Unready
from harness.config.compose import compose
from harness.observe.board import Activity, Board, RankState, board_path
from harness.run.attempt import Attempt, Outcome, claim, read_outcome, silent_nodes
from harness.run.exit_codes import NONFINITE, OK
from harness.run.files import write_json
from harness.run.folder import RunFolder
from harness.run.node import Node
from harness.train.meters import start_board
from tests.filling import full_disk


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    run = RunFolder(tmp_path)
    run.create()
    attempt = claim(run, "7.0", "7", ["n1"], "127.0.0.1", 1)
    agent = Agent(
        compose(["+exp=tiny", "train.early_stop_evals=3"]),
        run,
        attempt,
        Node("n1", "127.0.0.1", 0, ["n1"], "7", 0, on_slurm=False),
    )
    yield agent
    shutil.rmtree(agent._boards_dir)


@pytest.mark.parametrize(
    ("code", "state", "step", "outcome", "why", "final"),
    [
        (OK, RankState.finished, 120, "finished", "all 120 steps are done", True),
        (OK, RankState.finished, 40, "finished", "stopped early after step 40 of 120: 3 validations in a row", True),
        (OK, RankState.stopped, 40, "stopped", "before the time limit", False),
        (NONFINITE, RankState.training, 40, "failed", "stayed NaN or Inf", True),
        (1, RankState.training, 40, "failed", "the launcher ended with status 1", False),
    ],
)
def test_outcome(agent: Agent, code: int, state: RankState, step: int, outcome: str, why: str, final: bool) -> None:
    for rank in range(2):
        board = Board.open_for_write(board_path(agent._boards_dir, rank))
        board.set("state", state)
        board.set("step", step)
    found = agent._outcome(code)
    assert (found.state, found.final) == (outcome, final)
    assert why in found.why


class Prepares(NodeData):
    """Data that is not ready, for a reason, while this happens to the agent."""

    def __init__(self, agent: Agent, unready: Unready | None, signal: str = "") -> None:
        self._agent, self._unready, self._signal = agent, unready, signal

    def prepare(self, ended: Callable[[], bool]) -> Unready | None:
        if self._signal:
            assert not ended()
            self._agent._on_stop(0, None) if self._signal == "stop" else self._agent._on_terminate(0, None)
            assert ended()
        return self._unready


@pytest.mark.parametrize(
    ("unready", "signal", "state", "reason", "code"),
    [
        (None, "stop", "stopped", "timeout", 0),
        (None, "terminate", "terminated", "", 143),
        (Unready("node n1: no such file"), "", "failed", "storage", 1),
    ],
)
def test_an_attempt_that_ends_before_its_ranks_start(
    agent: Agent, unready: Unready | None, signal: str, state: str, reason: str, code: int
) -> None:
    outcome = agent._prepare(Prepares(agent, unready, signal))
    assert outcome is not None
    assert (outcome.state, outcome.reason, outcome.exit_code, outcome.final) == (state, reason, code, False)
    assert unready is None or outcome.why == unready.why


def training(agent: Agent) -> Board:
    """The board of a rank that trains, which is this process."""
    board = Board.open_for_write(board_path(agent._boards_dir, 0))
    start_board(board, os.getpid(), 0)
    board.set("state", RankState.training)
    board.set("progress_time", 1.0)
    return board


def test_ranks_that_get_further_while_their_stacks_are_printed_are_left_alone(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = training(agent)
    monkeypatch.setattr(agent._hang, "print_stacks", lambda boards: board.progress())
    monkeypatch.setattr(agent._hang, "kill", lambda boards: pytest.fail("killed"))
    agent._end_hang([board])
    assert agent._run.events() == [] and not (agent._boards_dir / "hang").exists()


def test_ranks_that_do_not_are_killed_and_the_ledger_says_what_they_were_at(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = training(agent)
    board.set("activity", Activity.saving)
    killed: list[Board] = []
    monkeypatch.setattr(agent._hang, "print_stacks", lambda boards: None)
    monkeypatch.setattr(agent._hang, "kill", killed.extend)
    agent._end_hang([board])
    assert killed == [board] and (agent._boards_dir / "hang").exists()
    (event,) = agent._run.events()
    assert event["event"] == "hang"
    assert "no progress for 1800 s (cluster.planned_hang_seconds); ranks are saving" in event["why"]


def test_the_last_word_waits_for_room(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    run = agent._run
    run.events_path.mkdir()

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def room_again(seconds: float) -> None:
        if run.events_path.is_dir():
            run.events_path.rmdir()
            monkeypatch.setattr(attempt_module, "write_json", write_json)

    monkeypatch.setattr(attempt_module, "write_json", full)
    monkeypatch.setattr(files_module.time, "sleep", room_again)
    outcome = Outcome("finished", "", "all 120 steps are done", final=True)
    agent._leave_word(outcome)
    assert read_outcome(run, 0) == outcome
    assert silent_nodes(run, Attempt(0, "7.0", "7", ["n1"], "n1", "", 1, 0.0)) == []
    assert [event["event"] for event in run.events()] == ["attempt_end", "disk_full"]


def test_an_agent_that_was_told_to_die_does_not_wait(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(files_module.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with full_disk(agent._run.attempt_dir(0), kilobytes=64) as disk:
        disk.make_read_only()
        agent._on_terminate(0, None)
        agent._leave_word(Outcome("terminated", "", "the job was told to end (SIGTERM)", final=False))
    assert "could not write how the attempt ended" in capsys.readouterr().out


def test_ranks_start_when_the_data_is_ready(agent: Agent) -> None:
    assert agent._prepare(Prepares(agent, None)) is None
