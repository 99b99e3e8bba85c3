"""What the batch script does after the last agent has ended: go back into the queue, or let the job end."""

import time
from pathlib import Path

import pytest

from harness import slurm
from harness.config.compose import compose
from harness.recovery import batch
from harness.recovery.requeue import RequeueRefused
from harness.recovery.steps import Ended
from harness.run.attempt import Outcome, claim, log_path, write_end, write_outcome
from harness.run.exit_codes import BATCH_CODES, CONFIG, CRASH_LOOP, JOB_FAILED
from harness.run.folder import RunFolder
from harness.run.node import Node

KILLED = Ended(status=137, faults={"n2": "its agent was killed (SIGKILL)"})
NO_PYTHON = Ended(
    status=2,
    faults={"n2": "its agent exited with status 2"},
    statuses={"n2": 2},
    complaints={"n2": "execve(): python: No such file or directory"},
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save_config(compose(["+exp=tiny", f"runs_dir={tmp_path}", "cluster.nodes=2"]))
    return run


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float]]:
    """What the job was requeued without, and after which wait; Slurm says that the job runs on healthy nodes."""
    asked: list[tuple[list[str], float]] = []
    slurm_says(monkeypatch, slurm.Job("7", "RUNNING"))
    monkeypatch.setattr(slurm, "expand_nodes", lambda text: text.split(",") if text else [])
    monkeypatch.setattr(
        slurm, "node_states", lambda nodes=None, partition=None: dict.fromkeys(("n1", "n2", "n3"), "idle")
    )
    monkeypatch.setattr(slurm, "slurmd_starts", lambda nodes: dict.fromkeys(nodes, 0.0))
    monkeypatch.setattr(batch, "requeue", lambda node, keep_off, wait, ledger: asked.append((list(keep_off), wait)))
    return asked


def slurm_says(monkeypatch: pytest.MonkeyPatch, job: slurm.Job | None) -> None:
    monkeypatch.setattr(slurm, "job", lambda job_id: job)


def attempt(
    run: RunFolder, outcome: Outcome | None = None, started: tuple[str, ...] = ("n1", "n2"), key: str = "7.0"
) -> None:
    number = claim(run, key, "7", ["n1", "n2"], "h", 1).number
    for name in started:
        log_path(run, number, name).touch()
    if outcome:
        write_outcome(run, number, outcome)
        write_end(run, number, "n1", outcome.state)


def follow_up(run: RunFolder, ended: Ended, restart_count: int = 0, began: float = 0.0) -> int:
    node = Node("n1", "127.0.0.1", 0, ["n1", "n2"], "7", restart_count, on_slurm=True)
    return batch.follow_up(run, run.load_config(), node, ended, began)


def test_finished_run_ends_well(run: RunFolder, requeued: list[object]) -> None:
    attempt(run, Outcome("finished", "", "done", final=True))
    assert follow_up(run, Ended()) == 0
    assert requeued == []


def test_hopeless_run_ends_badly(run: RunFolder, requeued: list[object]) -> None:
    attempt(run, Outcome("failed", "nonfinite", "NaN", final=True, exit_code=66))
    assert follow_up(run, Ended(status=66)) == 66
    assert requeued == []


def test_what_another_nodes_agent_ends_with_counts_as_well(run: RunFolder, requeued: list[object]) -> None:
    """Only n2 can't read its data; the head was told to end."""
    attempt(run, Outcome("terminated", "", "told to end", final=False))
    assert follow_up(run, Ended(2, {"n2": "its agent exited with status 2"}, {"n2": CONFIG})) == CONFIG
    assert requeued == []


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (None, "unknown"),
        (Outcome("stopped", "timeout", "saved", final=False), "timeout"),
        (Outcome("terminated", "", "SIGTERM", final=False), "unknown"),
        (Outcome("failed", "unknown", "launcher died", final=False, exit_code=1), "unknown"),
        (Outcome("failed", "storage", "node n1 can't read", final=False, exit_code=1), "storage"),
    ],
)
def test_everything_else_goes_back_into_the_queue(
    run: RunFolder, requeued: list[object], outcome: Outcome | None, reason: str
) -> None:
    attempt(run, outcome)
    follow_up(run, KILLED)
    assert len(requeued) == 1
    (event,) = run.events()
    assert (event["event"], event["reason"], event["starts"]) == ("restart", reason, "7.1")
    assert "n2: its agent was killed (SIGKILL)" in event["why"]


def test_what_another_nodes_agent_said_is_the_reason(run: RunFolder, requeued: list[object]) -> None:
    attempt(run, Outcome("terminated", "", "told to end", final=False))
    write_end(run, 0, "n2", "failed", "storage", "node n2: /data cannot be read")
    follow_up(run, Ended(1, {"n2": "its agent exited with status 1"}, {"n2": 1}))
    (event,) = run.events()
    assert (event["reason"], event["why"]) == ("storage", "node n2: /data cannot be read")


def test_a_killed_agents_node_is_not_excluded(run: RunFolder, requeued: list[object]) -> None:
    attempt(run)
    follow_up(run, KILLED)
    assert run.excluded_nodes() == {} and requeued == [([], 10.0)]


def test_a_node_that_could_not_start_is_named_and_excluded(run: RunFolder, requeued: list[object]) -> None:
    attempt(run, started=("n1",))
    follow_up(run, NO_PYTHON)
    assert "could not start: execve(): python: No such file" in run.excluded_nodes()["n2"]
    assert requeued == [(["n2"], 10.0)]
    assert run.events()[-1]["bad_nodes"] == ["n2"] and run.events()[-1]["reason"] == "node_fail"


def test_a_node_that_came_back_before_slurm_noticed_is_excluded(
    run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Slurm kills the step on all nodes when one of them registers anew."""
    attempt(run)
    now = time.time()
    monkeypatch.setattr(slurm, "slurmd_starts", lambda nodes: {name: now for name in nodes})
    follow_up(run, Ended(137, {"n1": "its agent was killed (SIGKILL)"}), began=now - 60)
    assert run.excluded_nodes()["n2"].startswith("lost, and back at ")
    assert run.events()[-1]["reason"] == "node_fail"


def test_with_too_few_nodes_it_says_what_it_waits_for(
    run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "node_states", lambda nodes=None, partition=None: dict.fromkeys(("n1", "n2"), "idle"))
    attempt(run, started=("n1",))
    follow_up(run, NO_PYTHON)
    assert requeued == [([], 10.0)], "a list that left one node would leave the job pending for ever"
    waiting = run.events()[-1]
    assert waiting["event"] == "waiting" and "2 nodes needed, 1 healthy: n1" in waiting["why"]


def test_an_older_attempts_outcome_is_not_ours(run: RunFolder, requeued: list[object]) -> None:
    """srun failed before our agents started: what the attempt before said does not count."""
    attempt(run, Outcome("finished", "", "done", final=True))
    follow_up(run, Ended(1, said="Unable to create step for job 7"), restart_count=1)
    assert len(requeued) == 1
    assert run.events()[-1]["why"] == "Unable to create step for job 7"


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING", "PREEMPTED"])
def test_slurm_has_already_decided(
    run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    slurm_says(monkeypatch, slurm.Job("7", state))
    attempt(run)
    assert follow_up(run, KILLED) == JOB_FAILED
    assert requeued == [] and run.events() == []


def test_a_newer_start_is_left_alone(run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that wakes up after its job has gone on elsewhere."""
    slurm_says(monkeypatch, slurm.Job("7", "RUNNING", restarts=1))
    attempt(run)
    follow_up(run, KILLED, restart_count=0)
    assert requeued == [] and run.events() == []


def test_a_silent_controller_is_asked_again(
    run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([slurm.SlurmError("silent"), slurm.SlurmError("silent")])

    def job(job_id: str) -> slurm.Job:
        if error := next(answers, None):
            raise error
        return slurm.Job("7", "RUNNING")

    monkeypatch.setattr(slurm, "job", job)
    monkeypatch.setattr(batch.time, "sleep", lambda seconds: None)
    attempt(run)
    follow_up(run, KILLED)
    assert len(requeued) == 1


def test_a_loop_without_progress_ends(run: RunFolder, requeued: list[object]) -> None:
    limit = run.load_config().cluster.max_restarts_without_progress
    codes = [follow_up(run, Ended(1, said="srun: failed"), start) for start in range(limit + 1)]
    assert len(requeued) == limit and codes[-1] == CRASH_LOOP
    assert run.events()[-1]["event"] == "gave_up"
    assert "cluster.max_restarts_without_progress=3" in run.events()[-1]["why"]


def test_a_requeue_that_slurm_refuses_is_recorded(
    run: RunFolder, requeued: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise RequeueRefused("scontrol requeue failed: disabled. Launch the run again to resume it.")

    monkeypatch.setattr(batch, "requeue", refuse)
    attempt(run)
    assert follow_up(run, KILLED) == JOB_FAILED
    assert run.events()[-1]["event"] == "gave_up" and "Launch the run again" in run.events()[-1]["why"]


def test_a_host_that_does_not_see_the_run_folder_is_left_to_the_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a status that Python does not end with on purpose, so that the job goes on without this host."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(batch, "keep_printing", lambda: None)  # it takes over the test runner's output
    assert batch.main([str(tmp_path / "not mounted here")]) not in BATCH_CODES
    assert "not mounted here" in capsys.readouterr().out
