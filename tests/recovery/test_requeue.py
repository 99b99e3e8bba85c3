"""Putting the job back into the queue, whatever the controller does."""

import signal
from pathlib import Path

import pytest

from harness import slurm
from harness.config.compose import compose
from harness.recovery import requeue as module
from harness.recovery.requeue import RequeueRefused, requeue, room
from harness.run.folder import RunFolder
from harness.run.node import Node

NODE = Node("n1", "127.0.0.1", 0, ["n1", "n2"], "7", 0, on_slurm=True)


class Controller:
    """A slurmctld that answers as told: an error for each of the first requests, then yes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *errors: str, job: slurm.Job | None = None) -> None:
        self.errors, self.said = list(errors), list[str]()
        monkeypatch.setattr(slurm, "run", self.run)
        monkeypatch.setattr(slurm, "job", lambda job_id: job or slurm.Job("7", "RUNNING", restarts=0))
        monkeypatch.setattr(module.time, "sleep", lambda seconds: self.said.append(f"wait {seconds:g}"))

    def run(self, *command: str) -> str:
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN, "requeueing must not end us before the exclusion"
        self.said.append(" ".join(command[1:]))
        if self.errors:
            raise slurm.SlurmError(self.errors.pop(0))
        return ""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_the_exclusions_follow_the_requeue(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(monkeypatch)
    requeue(NODE, ["n4", "n2"], 20.0, run.ledger(0))
    assert controller.said == ["requeue 7", "update jobid=7 excnodelist=n2,n4 starttime=now+20"]


def test_a_list_that_is_empty_now_empties_slurms(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(monkeypatch)
    requeue(NODE, [], 0.0, run.ledger(0))
    assert controller.said == ["requeue 7", "update jobid=7 excnodelist="]


def test_a_silent_controller_is_asked_until_it_answers(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(monkeypatch, *["scontrol did not answer within 20 s: is slurmctld up?"] * 8)
    requeue(NODE, ["n2"], 0.0, run.ledger(0))
    waits = [float(line.split()[1]) for line in controller.said if line.startswith("wait")]
    assert waits == sorted(waits) and len(waits) == 8 and waits[-1] == 60
    assert controller.said[-1] == "update jobid=7 excnodelist=n2"
    assert [event["event"] for event in run.events()] == ["requeue_delayed"], "said once"


def test_a_request_that_got_through_without_its_answer_is_not_repeated(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(monkeypatch, "Socket timed out", job=slurm.Job("7", "PENDING", restarts=1))
    requeue(NODE, ["n2"], 0.0, run.ledger(0))
    assert controller.said.count("requeue 7") == 1
    assert controller.said[-1] == "update jobid=7 excnodelist=n2"


@pytest.mark.parametrize("words", ["Requested operation is presently disabled", "Access/permission denied"])
def test_a_no_is_final(run: RunFolder, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    Controller(monkeypatch, f"scontrol requeue failed: {words}")
    with pytest.raises(RequeueRefused, match=r"Launch the run again"):
        requeue(NODE, [], 0.0, run.ledger(0))


def test_room_is_what_slurm_could_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job("7", "RUNNING", partition="main"))
    monkeypatch.setattr(slurm, "expand_nodes", lambda text: ["n4", "n5"])
    asked: list[str | None] = []

    def states(partition: str | None) -> dict[str, str]:
        asked.append(partition)
        return {"n1": "idle", "n2": "down*", "n3": "mixed", "n4": "idle"}

    monkeypatch.setattr(slurm, "node_states", states)
    found = room(compose(["+exp=tiny", "cluster.nodes=2", "cluster.exclude=['n[4-5]']"]), "7")
    assert asked == ["main"]
    assert found.healthy() == {"n1", "n3"} and found.forbidden == {"n4", "n5"} and found.needed == 2
