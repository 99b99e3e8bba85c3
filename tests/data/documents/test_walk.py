import os
from pathlib import Path

import pytest

from harness.data.documents.passed_over import printable
from harness.data.documents.walk import walk
from harness.data.errors import DataError


def names(folder: Path) -> tuple[list[str], list[tuple[str, str]]]:
    found = walk(str(folder))
    passed_over = [(entry.file.removeprefix(f"{folder}/"), entry.reason) for entry in found.passed_over]
    return [file.name for file in found.files], passed_over


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_links_to_folders_and_files_are_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere" / "deep" / "b.txt")
    single = write(tmp_path / "single.txt")
    write(tmp_path / "in" / "a.txt")
    (tmp_path / "in" / "code").symlink_to("../elsewhere")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "z.txt").symlink_to(single)
    (tmp_path / "link").symlink_to("in")
    files = ["a.txt", "again/deep/b.txt", "code/deep/b.txt", "z.txt"]
    assert names(tmp_path / "in") == (files, [])
    assert names(tmp_path / "link") == (files, [])


def test_loops_end(tmp_path: Path) -> None:
    write(tmp_path / "a" / "b" / "x.txt")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "to_a").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "to_c").symlink_to(tmp_path / "c")
    files, passed_over = names(tmp_path)
    assert files == ["a/b/x.txt", "c/to_a/b/x.txt"]
    assert passed_over == [
        (f"{name}/", "loop of links") if not name.endswith("self") else (name, "loop of links")
        for name in ("a/b/up", "a/self", "a/to_c/to_a", "c/to_a/b/up", "c/to_a/self", "c/to_a/to_c")
    ]


def test_what_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path / ".git" / "a.txt")
    write(tmp_path / "deep" / "._a.txt")
    (tmp_path / ".lock").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    assert names(tmp_path) == (
        [],
        [(".git/", "hidden"), (".lock", "hidden"), ("deep/._a.txt", "hidden"), ("pipe.txt", "not a regular file")],
    )


def test_a_hidden_folder_that_was_asked_for_is_read(tmp_path: Path) -> None:
    write(tmp_path / ".cache" / "a.txt")
    assert names(tmp_path / ".cache") == (["a.txt"], [])


@pytest.mark.parametrize("name", ["x.txt", "folder", "x.pdf"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(DataError) as error:
        walk(str(tmp_path))
    message = f"--input {tmp_path}/{name}: cannot be read: No such file or directory (a link to nothing). Repair or"
    assert message in str(error.value)


def test_names_that_are_no_text(tmp_path: Path) -> None:
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.txt")).write_text("x")
    [file] = walk(str(tmp_path)).files
    assert printable(file.name) == "caf\\xe9.txt"
