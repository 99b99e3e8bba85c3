"""What the step says of a file system that is full, slow, closed or lies."""

import dataclasses
import os
from pathlib import Path

import pytest

from harness.preflight import check_storage as module
from harness.preflight.check_storage import PROBE_BYTES, check_storage, existing_parent
from harness.preflight.finding import Status, Subject
from tests.preflight.subjects import subject

HUGE = 10**18
SPARSE = 15 * 10**12
"""Nearly the longest file that ext4 takes."""


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "SLOW_BYTES_PER_SECOND", 0.0)
    return subject(tmp_path)


def planned(made: Subject, **changes: object) -> Subject:
    return dataclasses.replace(made, plan=dataclasses.replace(made.plan, **changes))  # type: ignore[arg-type]


def test_speeds_and_free_bytes_are_told_and_nothing_is_left(made: Subject, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    found = check_storage(made)
    assert found.status is Status.ok
    stat = os.statvfs(tmp_path)
    assert found.facts["free_bytes"] == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.2)
    assert found.facts["write_bytes_per_second"] > 0 and found.facts["read_bytes_per_second"] > 0
    assert sorted(os.listdir(tmp_path)) == before


def test_a_runs_dir_that_is_not_there_yet_is_not_made(made: Subject, tmp_path: Path) -> None:
    made.config.runs_dir = str(tmp_path / "new" / "runs")
    assert check_storage(made).facts["folder"] == str(tmp_path) == str(existing_parent(tmp_path / "new" / "runs"))
    assert not (tmp_path / "new").exists()


def test_a_runs_dir_that_can_not_be_written(made: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made.config.runs_dir = str(tmp_path / "file")
    (failure,) = check_storage(made).failures
    assert failure.startswith(f"runs_dir={tmp_path}/file: can't write 67.1 MB") and "Not a directory" in failure


def test_no_room_for_the_checkpoints_to_be_kept(made: Subject) -> None:
    (failure,) = check_storage(planned(made, checkpoints_kept_bytes=HUGE)).failures
    assert "lower checkpoint.keep or set another runs_dir" in failure and "take 1000000.0 TB" in failure


def test_what_the_run_has_saved_already_counts(made: Subject) -> None:
    saved = Path(made.config.runs_dir) / "run" / "checkpoints" / "step-00000003"
    saved.mkdir()
    with open(saved / "data", "wb") as file:
        file.truncate(SPARSE)
    kept = planned(made, checkpoints_kept_bytes=SPARSE + made.plan.checkpoint_bytes)
    assert check_storage(kept).status is Status.ok
    os.truncate(saved / "data", 0)
    assert check_storage(kept).status is Status.failed


def test_keeping_all_checkpoints_fails_for_one_and_warns_for_all(made: Subject) -> None:
    (failure,) = check_storage(planned(made, checkpoints_kept_bytes=None, checkpoint_bytes=HUGE)).failures
    assert "one checkpoint take" in failure
    found = check_storage(planned(made, checkpoints_kept_bytes=None, steps=HUGE))
    assert (
        not found.failures and "checkpoint.keep=null keeps all 333,333,333,333,333,334 checkpoints" in found.warnings[0]
    )


def test_slow_storage_is_a_warning(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_BYTES_PER_SECOND", float("inf"))
    (warning,) = check_storage(made).warnings
    assert "checkpoint.async=true" in warning


def test_storage_that_gives_back_other_bytes_fails(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_write", lambda file, data: os.write(file, data[:-1] + b"\0"))
    found = check_storage(made)
    assert "gave back other bytes than were written" in found.failures[0]


def test_a_disk_that_fills_up_fails(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a quota does, which free bytes do not show."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PROBE_BYTES // 2, hard))
    try:
        (failure,) = check_storage(made).failures
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in failure
