"""What the step says of the disk that data is copied to."""

import os
from pathlib import Path

import pytest

from harness.config.schema import ClusterKind, StageWhen
from harness.data.copies import mount_point
from harness.preflight import check_staging as module
from harness.preflight.check_staging import check_staging
from harness.preflight.finding import Status, Subject
from tests.preflight.subjects import subject


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Subject:
    monkeypatch.setattr(module, "SLOW_BYTES_PER_SECOND", 0.0)
    monkeypatch.setattr(module, "mount_point", lambda path: "/")  # all of tmp_path lies on one disk
    return subject(tmp_path, data__stage_to=str(tmp_path / "scratch" / "data"))


def test_nothing_is_staged(tmp_path: Path) -> None:
    assert check_staging(subject(tmp_path)).status is Status.skipped


def test_sizes_speeds_and_time_are_told_and_nothing_is_left(made: Subject, tmp_path: Path) -> None:
    before = sorted(os.listdir(tmp_path))
    found = check_staging(made)
    assert found.status is Status.ok
    size = sum(path.stat().st_size for path in (tmp_path / "tokens").iterdir())
    assert found.facts["bytes"] == found.facts["bytes_to_copy"] == size
    assert found.facts["write_bytes_per_second"] > 0 and found.facts["seconds"] > 0
    assert sorted(os.listdir(tmp_path)) == before
    assert "srun" not in found.summary


def test_on_a_login_node_it_says_whose_disk_it_was(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    made.config.cluster.kind = ClusterKind.slurm
    assert "look at the nodes' with srun" in check_staging(made).summary
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    assert "srun" not in check_staging(made).summary


def test_a_folder_that_can_not_be_written(made: Subject, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    made.config.data.stage_to = str(tmp_path / "file" / "x")
    (failure,) = check_staging(made).failures
    assert failure.startswith(f"data.stage_to={tmp_path}/file/x: can't write to {tmp_path}/file (Not a directory)")


def test_a_full_disk(made: Subject) -> None:
    made.config.data.stage_keep_free_bytes = 1 << 60
    (failure,) = check_staging(made).failures
    assert "not one file fits" in failure and "data.stage_keep_free_bytes" in failure


def test_a_disk_that_is_too_small(made: Subject, tmp_path: Path) -> None:
    with open(tmp_path / "tokens" / "huge.ds", "wb") as file:
        file.truncate(15 * 10**12)
    (warning,) = (text for text in check_staging(made).warnings if "are missing" in text)
    assert "what does not fit is read where it is" in warning


def test_a_source_that_is_not_there(made: Subject, tmp_path: Path) -> None:
    os.rename(tmp_path / "tokens", tmp_path / "gone")
    (failure,) = check_staging(made).failures
    assert failure == f"data.sources.web.path={tmp_path}/tokens cannot be read: No such file or directory"


def test_the_same_file_system_gains_nothing(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "mount_point", lambda path: "/fsx")
    (warning,) = check_staging(made).warnings
    assert "is on the same file system as data.sources.web.path=" in warning
    assert mount_point("/") == "/"


def test_gpus_that_would_wait_for_hours(made: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONG_SECONDS", 0.0)
    (warning,) = check_staging(made).warnings
    assert "data.stage_when=while_training" in warning
    made.config.data.stage_when = StageWhen.while_training
    assert check_staging(made).warnings == ()
