"""The decision about restarts, as a table: what is known, and what to do."""

from typing import Any

import pytest

from harness.recovery.budget import Budget
from harness.recovery.ladder import LONGEST_WAIT, Act, Decision, Facts, JobFacts, Moment, decide, wait_before
from harness.recovery.room import Room
from harness.run.attempt import Outcome
from harness.run.exit_codes import CONFIG, CRASH_LOOP, NONFINITE

RUNNING = JobFacts("RUNNING", 0)
LIMIT = 3
USED_UP = Budget(tries=4, useless=4)
NEARLY = Budget(tries=3, useless=3)
FINISHED = Outcome("finished", "", "done", final=True)
HOPELESS = Outcome("failed", "nonfinite", "NaN", final=True, exit_code=NONFINITE)
SAVED = Outcome("stopped", "timeout", "saved", final=False)
N4 = dict.fromkeys(("n1", "n2", "n3", "n4"), "idle")
ROOM = Room(2, N4)
NO_ROOM = Room(4, N4)
PAIR = ("n1", "n2")


def ranks_failed(**facts: Any) -> Facts:
    return Facts(Moment.ranks_failed, LIMIT, **facts)


def agents_ended(**facts: Any) -> Facts:
    return Facts(Moment.agents_ended, LIMIT, **{"job": RUNNING, "nodes": PAIR, "room": ROOM, **facts})


def starting(**facts: Any) -> Facts:
    return Facts(Moment.starting, LIMIT, **{"nodes": PAIR, "room": ROOM, **facts})


@pytest.mark.parametrize(
    ("facts", "act", "expected"),
    [
        pytest.param(ranks_failed(), Act.restart_ranks, {"wait_seconds": 0}, id="ranks: again, at once"),
        pytest.param(ranks_failed(budget=NEARLY), Act.restart_ranks, {"wait_seconds": 40}, id="ranks: the last try, after a wait"),
        pytest.param(ranks_failed(budget=USED_UP), Act.give_up, {"exit_code": CRASH_LOOP}, id="ranks: one too many"),
        pytest.param(ranks_failed(budget=Budget(9, 0)), Act.restart_ranks, {"wait_seconds": 60}, id="ranks: bad nodes do not count"),
        pytest.param(ranks_failed(fatal_exit=CONFIG), Act.end, {"exit_code": CONFIG}, id="ranks: the config is wrong"),
        pytest.param(ranks_failed(fatal_exit=NONFINITE, budget=USED_UP), Act.end, {"exit_code": NONFINITE}, id="ranks: a reason beats the count"),

        pytest.param(agents_ended(outcome=FINISHED), Act.end, {"exit_code": 0}, id="ended: finished"),
        pytest.param(agents_ended(outcome=FINISHED, job=None), Act.end, {}, id="ended: finished, Slurm is silent"),
        pytest.param(agents_ended(outcome=HOPELESS), Act.end, {"exit_code": NONFINITE}, id="ended: hopeless"),
        pytest.param(agents_ended(fatal_exit=CONFIG), Act.end, {"exit_code": CONFIG}, id="ended: another node's agent knows why"),
        pytest.param(agents_ended(job=None), Act.ask_again, {}, id="ended: Slurm is silent"),
        pytest.param(agents_ended(job=None, budget=USED_UP), Act.ask_again, {}, id="ended: Slurm is silent, and is asked first"),
        pytest.param(agents_ended(job=JobFacts("CANCELLED", 0)), Act.stand_aside, {}, id="ended: cancelled"),
        pytest.param(agents_ended(job=JobFacts("COMPLETING", 0)), Act.stand_aside, {}, id="ended: Slurm ends it"),
        pytest.param(agents_ended(job=JobFacts("PENDING", 1)), Act.stand_aside, {}, id="ended: Slurm has requeued it"),
        pytest.param(agents_ended(job=JobFacts("RUNNING", 1)), Act.stand_aside, {}, id="ended: a newer start runs"),
        pytest.param(agents_ended(job=JobFacts("RUNNING", None)), Act.requeue, {}, id="ended: Slurm does not count"),
        pytest.param(agents_ended(job=JobFacts("FORGOTTEN", None)), Act.stand_aside, {}, id="ended: forgotten"),
        pytest.param(agents_ended(outcome=SAVED, reason="timeout"), Act.requeue, {"reason": "timeout", "wait_seconds": 0, "bad_nodes": {}}, id="ended: saved before the time limit"),
        pytest.param(agents_ended(budget=NEARLY), Act.requeue, {"wait_seconds": 40}, id="ended: the last try"),
        pytest.param(agents_ended(budget=USED_UP), Act.give_up, {"exit_code": CRASH_LOOP}, id="ended: one too many"),
        pytest.param(agents_ended(bad_nodes={"n2": "x"}), Act.requeue, {"bad_nodes": {"n2": "x"}, "keep_off": ("n2",)}, id="ended: one node could not start"),
        pytest.param(agents_ended(bad_nodes={"n2": "x"}, budget=Budget(9, 0)), Act.requeue, {"wait_seconds": LONGEST_WAIT}, id="ended: the ninth bad node"),
        pytest.param(agents_ended(bad_nodes={"n1": "x", "n2": "x"}), Act.requeue, {"bad_nodes": {}, "keep_off": ()}, id="ended: no node could start, so none is to blame"),
        pytest.param(agents_ended(nodes=("n1",), bad_nodes={"n1": "x"}), Act.requeue, {"bad_nodes": {}}, id="ended: nor where there is one"),
        pytest.param(agents_ended(excluded={"n3": "y"}, bad_nodes={"n2": "x"}), Act.requeue, {"keep_off": ("n2", "n3")}, id="ended: earlier exclusions stay"),
        pytest.param(agents_ended(excluded={"n3": "y"}, room=Room(2, N4, forbidden=frozenset({"n4"}))), Act.requeue, {"keep_off": ("n3", "n4")}, id="ended: the user's stay"),
        pytest.param(agents_ended(nodes=("n1", "n2", "n3", "n4"), bad_nodes={"n2": "x"}, room=NO_ROOM), Act.requeue, {"bad_nodes": {"n2": "x"}, "keep_off": ()}, id="ended: too few nodes without it"),

        pytest.param(starting(), Act.train, {"readmit": ()}, id="start: all is well"),
        pytest.param(starting(budget=NEARLY), Act.train, {}, id="start: the last try"),
        pytest.param(starting(budget=USED_UP), Act.give_up, {"exit_code": CRASH_LOOP}, id="start: one too many"),
        pytest.param(starting(excluded={"n3": "x"}), Act.train, {}, id="start: the excluded node is not here"),
        pytest.param(starting(excluded={"n2": "x"}), Act.requeue, {"keep_off": ("n2",)}, id="start: an excluded node is back"),
        pytest.param(starting(excluded={"n2": "x"}, room=Room(2, N4, forbidden=frozenset({"n4"}))), Act.requeue, {"keep_off": ("n2", "n4")}, id="start: and the user's stay"),
        pytest.param(starting(excluded={"n2": "x"}, room=NO_ROOM), Act.train, {"readmit": ("n2",)}, id="start: too few without it"),
        pytest.param(starting(excluded={"n2": "x"}, room=Room(3, N4, sick=frozenset({"n4"}))), Act.train, {"readmit": ("n2",)}, id="start: too few, since another is down"),
        pytest.param(starting(excluded={"n2": "x"}, room=Room(2, None)), Act.train, {"readmit": ("n2",)}, id="start: Slurm is silent, and the nodes are ours"),
        pytest.param(starting(excluded={"here": "x"}, nodes=("here",), on_slurm=False), Act.train, {"readmit": ()}, id="start: on this machine there are no others"),
    ],
)  # fmt: skip
def test_decide(facts: Facts, act: Act, expected: dict[str, Any]) -> None:
    decision = decide(facts)
    assert decision.act is act, decision
    assert {key: getattr(decision, key) for key in expected} == expected


def test_a_run_that_gives_up_says_after_what() -> None:
    decision = decide(agents_ended(budget=USED_UP, why="n2: its agent was killed (SIGKILL)"))
    assert "3 restarts in a row" in decision.why and "cluster.max_restarts_without_progress=3" in decision.why
    assert "n2: its agent was killed (SIGKILL)" in decision.why


def test_waits_grow_and_have_an_end() -> None:
    waits = [wait_before(tries) for tries in range(20)]
    assert waits == sorted(waits)
    assert waits[:4] == [0, 10, 20, 40] and waits[-1] == LONGEST_WAIT


def test_a_run_with_too_few_nodes_says_what_it_waits_for() -> None:
    decision: Decision = decide(agents_ended(nodes=tuple(N4), bad_nodes={"n2": "no Python"}, room=NO_ROOM))
    assert "n2 (no Python)" in decision.waits_for
