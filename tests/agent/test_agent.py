"""What an agent says at the end, from what its launcher and its ranks have left."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.agent.agent import Agent
from harness.agent.data import NodeData, Unready
from harness.config.compose import compose
from harness.observe.board import Board, RankState, board_path
from harness.run.attempt import claim
from harness.run.exit_codes import NONFINITE, OK
from harness.run.folder import RunFolder
from harness.run.node import Node


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


def test_ranks_start_when_the_data_is_ready(agent: Agent) -> None:
    assert agent._prepare(Prepares(agent, None)) is None
