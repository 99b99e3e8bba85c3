"""A run may restart for ever as long as it gets further."""

from typing import Any

import pytest

from harness.recovery.budget import Budget, budget


def _restarts(*steps: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"event": "restart", "step": step, "reason": "rank_crash", **fields} for step in steps]


def _requeues(*steps: int, **fields: Any) -> list[dict[str, Any]]:
    return _restarts(*steps, how="requeue", **fields)


@pytest.mark.parametrize(
    ("events", "tries", "useless"),
    [
        pytest.param([], 0, 0, id="nothing has happened"),
        pytest.param(_restarts(10, 20, 30, 40), 0, 0, id="each gets further"),
        pytest.param(_restarts(10, 50, 50, 50), 2, 2, id="dying at the same step"),
        pytest.param(_restarts(50, 45, 49, 50), 3, 3, id="falling back is no progress"),
        pytest.param(_restarts(0, 0, 0), 3, 3, id="never getting anywhere counts from the first"),
        pytest.param(
            [*_restarts(50), {"event": "rewind", "step": 20}, *_restarts(30, 40, 45)], 0, 0, id="done again after a rewind"
        ),
        pytest.param(
            [*_restarts(50), {"event": "rewind", "step": 20}, *_restarts(30, 45, 45, 45)], 2, 2, id="stuck after a rewind"
        ),
        pytest.param(
            [*_restarts(5, 5), {"event": "rank_failed", "step": 9}, {"event": "first_step", "step": 8}], 1, 1,
            id="other events say nothing of progress",
        ),
        pytest.param(
            [*_restarts(5, 5, 5), *_requeues(5, reason="user")], 0, 0, id="launched again: a new budget"
        ),
        pytest.param(
            [*_requeues(0, 0), {"event": "checkpoint", "step": 4}, *_requeues(0)], 1, 1,
            id="a checkpoint is progress, whatever was logged",
        ),
        pytest.param(
            [e for n in range(2, 20, 2) for e in ({"event": "checkpoint", "step": n}, *_requeues(0))], 1, 1,
            id="nine short starts, each with a new checkpoint",
        ),
        pytest.param(
            [*_requeues(7), {"event": "checkpoint", "step": 5}, *_requeues(7)], 1, 1, id="an older checkpoint is none"
        ),
        pytest.param(_requeues(0, 0, 0, 0, bad_nodes=["n2"]), 4, 0, id="bad nodes are not the run's fault"),
        pytest.param(_requeues(0, 0, 0, 0, reason="preempt"), 4, 0, id="nor is preemption"),
        pytest.param(_restarts(0, 0), 2, 2, id="ranks that die before they train"),
    ],
)  # fmt: skip
def test_budget(events: list[dict[str, Any]], tries: int, useless: int) -> None:
    assert budget(events) == Budget(tries, useless)
