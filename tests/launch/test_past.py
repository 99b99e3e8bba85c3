"""What an earlier launch left behind: a job that may still run, a folder from a cluster, a disk that is full."""

import errno
import os
import re
import time
from pathlib import Path

import pytest

from harness import slurm
from harness.cluster import submit
from harness.config.schema import ClusterKind
from harness.launch import __main__ as command_line
from harness.launch import launch as launch_module
from harness.run import files
from harness.run.attempt import Outcome, claim, write_outcome
from harness.run.folder import RunFolder
from tests.tiny import tiny_run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run whose job was Slurm's, with config.yaml as it was there."""
    run = tiny_run(tmp_path, cluster__kind=ClusterKind.slurm, cluster__hang_seconds=3600.0)
    run.update_record(job_id="77", run_id="run-1", cluster="slurm")
    monkeypatch.setattr(launch_module, "readiness", lambda config: [])
    monkeypatch.setattr(submit, "submit", lambda config, run: "78")
    return run


def launch(run: RunFolder, kind: ClusterKind = ClusterKind.local, dry_run: bool = False) -> int:
    config = run.load_config()
    config.cluster.kind, config.dry_run = kind, dry_run
    return command_line._launch_all([config])


class TestFolderFromACluster:
    @pytest.fixture(autouse=True)
    def _no_slurm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/usr/bin-without-slurm")

    def test_goes_on_here(self, run: RunFolder) -> None:
        assert launch(run) == 0
        assert (run.record()["job_id"], run.record()["cluster"]) == ("78", "local")

    def test_one_that_wrote_something_a_moment_ago_may_still_run(
        self, run: RunFolder, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run.ledger(0).write("checkpoint", step=3)
        assert launch(run) == 2
        said = capsys.readouterr().err
        assert re.search(r"Slurm job 77 wrote its last line \d.* ago and may still run", said) and "scancel 77" in said
        assert "cluster=local" not in said, "that is what was asked for"

    def test_one_that_wrote_something_long_ago_does_not(self, run: RunFolder) -> None:
        long_ago = time.time() - 3601
        run.events_path.write_text(f'{{"event": "checkpoint", "time": {long_ago}, "attempt": 0, "step": 3}}\n')
        assert launch(run) == 0

    def test_one_that_has_ended_for_good_does_not_either(self, run: RunFolder) -> None:
        run.ledger(0).write("finished", step=3)
        claim(run, "77.0", "77", ["n1"], "127.0.0.1", 1)
        write_outcome(run, 0, Outcome("failed", "nonfinite", "why", final=True))
        assert launch(run) == 0

    def test_with_slurm_asked_for_it_is_refused(self, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
        assert launch(run, ClusterKind.slurm) == 3
        assert "scontrol is not on PATH: this machine has no Slurm client" in capsys.readouterr().err


def test_a_controller_that_does_not_answer_is_no_sign_of_death(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def no_answer(job_id: str) -> None:
        raise slurm.SlurmError("scontrol did not answer")

    monkeypatch.setattr(slurm, "job", no_answer)
    assert launch(run) == 3
    assert "scontrol did not answer" in capsys.readouterr().err


def test_a_dry_run_says_what_the_launch_refuses_and_changes_nothing(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: "RUNNING")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert launch(run, dry_run=True) == 0
    said = "run.name=run: already running as job 77"
    assert said in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert launch(run) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.yaml", "plan.json", "run.json"])
def test_a_full_disk_is_named_with_the_path(
    run: RunFolder, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submit, "is_active", lambda run, kind, job_id: None)
    sync = os.fsync

    def full(fd: int) -> None:
        if f".{name}." in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(fd)

    monkeypatch.setattr(files.os, "fsync", full)
    assert launch(run) == 3
    assert f"{run.path / name}: No space left on device. Free some space, or set runs_dir" in capsys.readouterr().err
    assert not list(run.path.glob("*.tmp")) and not list(run.path.glob(".*.tmp"))


def test_a_submission_on_a_full_disk_is_named(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(submit, "_submit_local", full)
    config = run.load_config()
    config.cluster.kind = ClusterKind.local
    with pytest.raises(OSError, match="No space left on device") as caught:
        submit.submit(config, run)
    assert caught.value.filename == str(run.submit_dir)
