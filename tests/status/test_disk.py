"""What a status says of the run folder's disk."""

from pathlib import Path

from harness.status.disk import disk_problem
from tests.filling import full_disk


def test_room_is_no_news(tmp_path: Path) -> None:
    assert disk_problem(tmp_path, None) is None
    assert disk_problem(tmp_path, 1000) is None


def test_a_full_disk_one_without_room_for_a_checkpoint_and_a_read_only_one(tmp_path: Path) -> None:
    with full_disk(tmp_path / "small", kilobytes=4096) as disk:
        assert disk_problem(disk.folder, 2_000_000) is None
        assert "4.2 MB free, and a checkpoint takes 5.0 MB" in (disk_problem(disk.folder, 5_000_000) or "")
        disk.fill()
        assert "FULL (0 B free)" in (disk_problem(disk.folder, None) or "")
        disk.make_read_only()
        assert "READ-ONLY" in (disk_problem(disk.folder, None) or "")


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    assert "absent can't be reached: No such file" in (disk_problem(tmp_path / "absent", None) or "")
