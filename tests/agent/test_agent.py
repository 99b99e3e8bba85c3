"""What an agent says at the end, from what its launcher and its ranks have left."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.agent.agent import Agent
from harness.agent.node import Node
from harness.config.compose import compose
from harness.observe.board import Board, RankState, board_path
from harness.run.attempt import claim
from harness.run.exit_codes import NONFINITE, OK
from harness.run.folder import RunFolder


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
