"""What the batch script does after srun: go back into the queue, or let the job end."""

from pathlib import Path

import pytest

from harness import slurm
from harness.cluster import aftermath
from harness.config.compose import compose
from harness.run.attempt import Outcome, claim, write_outcome
from harness.run.folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    run.save_config(compose(["+exp=tiny", f"runs_dir={tmp_path}"]))
    return run


@pytest.fixture
def requeued(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Job ids that were requeued; Slurm says that the job runs."""
    jobs: list[str] = []
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, "RUNNING", False))
    monkeypatch.setattr(slurm, "requeue", jobs.append)
    return jobs


def _attempt(run: RunFolder, outcome: Outcome | None) -> None:
    number = claim(run, "7.0", "7", ["n1"], "h", 1).number
    if outcome:
        write_outcome(run, number, outcome)


def test_finished_run_ends_well(run: RunFolder, requeued: list[str]) -> None:
    _attempt(run, Outcome("finished", "", "done", final=True))
    assert aftermath.decide(run, "7", 0, 0) == 0
    assert requeued == []


def test_hopeless_run_ends_badly(run: RunFolder, requeued: list[str]) -> None:
    _attempt(run, Outcome("failed", "nonfinite", "NaN", final=True, exit_code=66))
    assert aftermath.decide(run, "7", 0, 66) == 66
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
    run: RunFolder, requeued: list[str], outcome: Outcome | None, reason: str
) -> None:
    _attempt(run, outcome)
    aftermath.decide(run, "7", 0, 137)
    assert requeued == ["7"]
    (event,) = run.events()
    assert (event["event"], event["reason"], event["starts"]) == ("restart", reason, "7.1")


def test_an_older_attempts_outcome_is_not_ours(run: RunFolder, requeued: list[str]) -> None:
    """srun failed before our agents started: what the attempt before said does not count."""
    _attempt(run, Outcome("finished", "", "done", final=True))
    aftermath.decide(run, "7", 1, 1)
    assert requeued == ["7"]


@pytest.mark.parametrize("state", ["CANCELLED", "COMPLETING", "PENDING", "PREEMPTED"])
def test_slurm_has_already_decided(
    run: RunFolder, requeued: list[str], monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr(slurm, "job", lambda job_id: slurm.Job(job_id, state, False))
    _attempt(run, None)
    assert aftermath.decide(run, "7", 0, 143) == 143
    assert requeued == []


def test_a_loop_without_progress_ends(run: RunFolder, requeued: list[str]) -> None:
    limit = run.load_config().cluster.max_restarts_without_progress
    for start in range(10):
        aftermath.decide(run, "7", start, 1)
    assert len(requeued) == limit + 1
    assert run.events()[-1]["event"] == "gave_up"
    assert "cluster.max_restarts_without_progress=3" in run.events()[-1]["why"]
