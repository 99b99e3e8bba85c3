"""Files that are whole or absent."""

import errno
import os
import resource
import threading
from pathlib import Path

import pytest

import harness.run.files as files_module
from harness.run.files import (
    append_json_line,
    keep_trying,
    read_json,
    read_json_lines,
    sample_json_lines,
    tail_json_lines,
    write_atomic,
    write_json,
)


def test_replaces_as_a_whole_and_leaves_no_draft(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2})
    assert read_json(path) == {"a": 2}
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "new \udcff")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_lines_of_many_writers_never_mix(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"

    def write(writer: int) -> None:
        for number in range(50):
            append_json_line(path, {"writer": writer, "number": number, "padding": "x" * 300})

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    records = list(read_json_lines(path))
    assert len(records) == 200
    assert [r["number"] for r in records if r["writer"] == 2] == list(range(50))


def test_half_a_line_of_a_killed_writer_costs_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    with open(path, "a") as f:
        f.write('{"a": 2, "tor')
    append_json_line(path, {"a": 3})
    assert [record["a"] for record in read_json_lines(path)] == [1, 3]


def _numbers(path: Path, count: int) -> None:
    path.write_text("".join(f'{{"n": {n}, "padding": "{"x" * 200}"}}\n' for n in range(count)))


@pytest.mark.parametrize("count", [0, 1, 3, 2000])
def test_the_tail_is_the_end_of_the_whole(tmp_path: Path, count: int) -> None:
    path = tmp_path / "lines.jsonl"
    _numbers(path, count)
    for wanted in (1, 2, 700):
        assert tail_json_lines(path, wanted) == list(read_json_lines(path))[-wanted:]


def test_half_a_line_at_the_end_is_no_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _numbers(path, 5)
    with open(path, "a") as f:
        f.write('{"n": 5, "tor')
    assert [record["n"] for record in tail_json_lines(path, 2)] == [3, 4]


def test_a_sample_spans_the_file(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    _numbers(path, 1000)
    numbers = [record["n"] for record in sample_json_lines(path, 10)]
    assert numbers[0] == 0 and numbers[-1] == 999 and len(numbers) == 11 and numbers == sorted(set(numbers))
    _numbers(path, 3)
    assert [record["n"] for record in sample_json_lines(path, 10)] == [0, 1, 2]


def test_missing_files_are_empty(tmp_path: Path) -> None:
    assert read_json(tmp_path / "absent") is None
    absent = tmp_path / "absent"
    assert list(read_json_lines(absent)) == tail_json_lines(absent, 3) == sample_json_lines(absent, 3) == []


def test_keeps_trying_while_there_is_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    failures = [errno.ENOSPC, errno.EROFS, errno.ESTALE]

    def write() -> str:
        if failures:
            raise OSError(failures.pop(0), "no")
        return "written"

    monkeypatch.setattr(files_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files_module, "MOST_PAUSE_SECONDS", 0.0)
    assert keep_trying(write, "the record", 3600.0) == "written"
    printed = capsys.readouterr().out
    assert printed.count("can't write the record") == 1 and printed.endswith("wrote the record\n")


@pytest.mark.parametrize(
    ("number", "seconds", "ended"),
    [(errno.ENOENT, 3600.0, False), (errno.ENOSPC, 0.0, False), (errno.ENOSPC, 3600.0, True)],
)
def test_does_not_try_in_vain(number: int, seconds: float, ended: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(files_module.time, "sleep", lambda seconds: pytest.fail("it waits"))
    with pytest.raises(OSError):
        keep_trying(write, "the record", seconds, lambda: ended)


def test_a_short_write_leaves_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"a": 1})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, limits[1]))
    try:
        with pytest.raises(OSError):
            append_json_line(path, {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == '{"a": 1}\n'
