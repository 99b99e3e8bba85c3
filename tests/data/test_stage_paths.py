"""Which file a reader opens."""

import os
from pathlib import Path

from harness.data.stage_paths import LOOK_SECONDS, StagedFiles, staged_folder, staged_path


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def pair(tmp_path: Path) -> tuple[Path, Path]:
    """An original, and where its copy goes."""
    original = tmp_path / "shared" / "web" / "a.ds"
    original.parent.mkdir(parents=True)
    original.write_bytes(b"12345678")
    copy = staged_path(tmp_path / "scratch", original)
    copy.parent.mkdir(parents=True)
    return original, copy


def put_copy(original: Path, copy: Path) -> None:
    copy.write_bytes(original.read_bytes())
    stat = original.stat()
    os.utime(copy, ns=(stat.st_mtime_ns, stat.st_mtime_ns))


def test_folders_of_one_name_do_not_meet(tmp_path: Path) -> None:
    places = {staged_folder(tmp_path, origin) for origin in ("/a/web", "/b/web", "s3://bucket/web", "/a/we b")}
    assert len(places) == 4
    assert staged_folder(tmp_path, "/a/web/") == staged_folder(tmp_path, "/a/web")
    assert all(place.parent == tmp_path for place in places)


def test_the_copy_is_taken_once_it_is_there_and_is_looked_for_rarely(tmp_path: Path) -> None:
    original, copy = pair(tmp_path)
    clock = Clock()
    staged = StagedFiles(tmp_path / "scratch", [original], clock)
    assert staged.path(original) == str(original)
    put_copy(original, copy)
    clock.now = LOOK_SECONDS / 2
    assert staged.path(original) == str(original)
    clock.now = LOOK_SECONDS
    assert staged.path(original) == str(copy)


def test_a_copy_of_another_version_is_not_taken(tmp_path: Path) -> None:
    original, copy = pair(tmp_path)
    put_copy(original, copy)
    stat = original.stat()
    os.utime(original, ns=(stat.st_mtime_ns + 5_000_000_000, stat.st_mtime_ns + 5_000_000_000))
    assert StagedFiles(tmp_path / "scratch", [original]).path(original) == str(original)
    put_copy(original, copy)
    copy.write_bytes(b"1234")
    assert StagedFiles(tmp_path / "scratch", [original]).path(original) == str(original)


def test_a_copy_that_fails_is_left_for_a_while(tmp_path: Path) -> None:
    original, copy = pair(tmp_path)
    put_copy(original, copy)
    clock = Clock()
    staged = StagedFiles(tmp_path / "scratch", [original], clock)
    assert staged.path(original) == str(copy)
    staged.forget(original)
    assert staged.path(original) == str(original)
    clock.now = LOOK_SECONDS
    assert staged.path(original) == str(copy)


def test_the_originals_are_not_asked_again(tmp_path: Path) -> None:
    """They may hang or be gone by the time that the copy is complete."""
    original, copy = pair(tmp_path)
    staged = StagedFiles(tmp_path / "scratch", [original])
    put_copy(original, copy)
    original.unlink()
    assert staged.path(original) == str(copy)
