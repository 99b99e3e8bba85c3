from pathlib import Path

import pytest

from harness.checkpoint import folders


def make(checkpoints: Path, step: int) -> Path:
    folder = folders.unfinished_path(checkpoints, step, 0)
    folder.mkdir(parents=True)
    (folder / "content").write_text(str(step))
    return folder


def test_publish_makes_it_the_latest_and_prune_keeps_the_newest(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        folders.publish(make(tmp_path, step), tmp_path, step)
    assert (tmp_path / "latest").read_text() == "step-00000040\n"
    assert folders.complete_steps(tmp_path) == [40, 30, 20, 10]
    assert folders.prune(tmp_path, 40, None) == []
    assert folders.prune(tmp_path, 40, 2) == [20, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000030", "step-00000040"]
    assert folders.prune(tmp_path, 40, 1) == [30]


def test_prune_spares_the_last_one_before_the_decay(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        folders.publish(make(tmp_path, step), tmp_path, step)
    assert folders.prune(tmp_path, 50, 2, plateau_end=25) == [30, 10]
    assert folders.complete_steps(tmp_path) == [50, 40, 20]
    assert folders.prune(tmp_path, 50, 1, plateau_end=60) == [40, 20]  # the decay has not begun: the newest will do
    assert folders.prune(tmp_path, 50, 1, plateau_end=5) == []


def test_prune_never_counts_what_is_newer_than_the_one_just_written(tmp_path: Path) -> None:
    for step in (10, 20, 90):  # 90 was found corrupt, and the run went back
        folders.publish(make(tmp_path, step), tmp_path, step)
    assert folders.prune(tmp_path, 20, 2) == []
    assert folders.complete_steps(tmp_path) == [90, 20, 10]


def test_a_checkpoint_made_again_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folders.publish(make(tmp_path, 10), tmp_path, 10)
    again = make(tmp_path, 10)
    (again / "content").write_text("new")
    folders.publish(again, tmp_path, 10)
    assert (tmp_path / "step-00000010" / "content").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000010"]


def test_abandoning_goes_on_where_a_full_disk_has_stopped_it(tmp_path: Path) -> None:
    for step in (10, 20, 30):
        folders.publish(make(tmp_path, step), tmp_path, step)
    (tmp_path / "latest").unlink()
    (tmp_path / "latest").mkdir()  # can't be replaced
    with pytest.raises(OSError):
        folders.abandon(tmp_path, [30, 20], 4, 10)
    (tmp_path / "latest").rmdir()
    folder = folders.abandon(tmp_path, [30, 20], 4, 10)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000020", "step-00000030"]
    assert (tmp_path / "latest").read_text() == "step-00000010\n" and folders.complete_steps(tmp_path) == [10]


def test_only_leftovers_are_removed(tmp_path: Path) -> None:
    folders.publish(make(tmp_path, 10), tmp_path, 10)
    make(tmp_path, 20)
    (tmp_path / ".step-00000005.removed.tmp").mkdir()
    (tmp_path / "notes").mkdir()
    assert len(folders.remove_unfinished(tmp_path)) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "notes", "step-00000010"]
    assert folders.remove_unfinished(tmp_path / "absent") == []
    assert folders.complete_steps(tmp_path / "absent") == []
