"""Lines that wait for room, in order, and what is said of them."""

import json
import threading
from pathlib import Path

import pytest

import harness.run.journal as journal_module
from harness.run.files import read_json_lines
from harness.run.journal import Journal, journal, lines_waiting
from tests.filling import full_disk


def numbers(path: Path) -> list[int]:
    return [record["n"] for record in read_json_lines(path)]


def test_lines_wait_in_order_until_the_file_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    now = [100.0]
    ours = Journal(path, lambda: now[0])
    assert ours.write({"n": 1})
    path.rename(tmp_path / "aside")
    path.mkdir()
    assert not ours.write({"n": 2})
    now[0] = 130.0
    assert not ours.write({"n": 3}) and ours.waiting == 2
    assert [record["n"] for record in ours.unwritten()] == [2, 3]
    path.rmdir()
    (tmp_path / "aside").rename(path)
    assert ours.flush() and ours.waiting == 0
    assert numbers(path) == [1, 2, 3]
    (gap,) = ours.take_gaps()
    assert (gap.since, gap.until, gap.late, gap.lost) == (100.0, 130.0, 2, 0) and ours.take_gaps() == []


def test_only_so_many_are_kept_and_the_oldest_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "MOST_WAITING", 3)
    monkeypatch.setattr(journal_module, "BLOCK_LINES", 2)
    path = tmp_path / "a.jsonl"
    path.mkdir()
    ours = Journal(path)
    for n in range(8):
        ours.write({"n": n})
    assert (ours.waiting, ours.lost) == (3, 5)
    path.rmdir()
    assert ours.write({"n": 8})
    assert numbers(path) == [6, 7, 8] and ours.lost == 6
    (gap,) = ours.take_gaps()
    assert gap.lost == 6


def test_what_must_come_first_comes_first(tmp_path: Path) -> None:
    path, ready = tmp_path / "a.jsonl", tmp_path / "ready"
    ours = Journal(path)
    ours.first(lambda: ready.read_text())
    assert not ours.write({"n": 1}) and not path.exists()
    ready.touch()
    assert ours.write({"n": 2}) and numbers(path) == [1, 2]


def test_a_process_has_one_journal_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert journal(Path("a.jsonl")) is journal(tmp_path / "a.jsonl")
    assert lines_waiting(tmp_path) == 0
    (tmp_path / "a.jsonl").mkdir()
    journal(tmp_path / "a.jsonl").write({"n": 1})
    assert lines_waiting(tmp_path) == 1
    (tmp_path / "a.jsonl").rmdir()
    assert journal(tmp_path / "a.jsonl").flush() and lines_waiting(tmp_path) == 0


def test_threads_may_share_it(tmp_path: Path) -> None:
    ours = Journal(tmp_path / "a.jsonl")
    threads = [threading.Thread(target=lambda: [ours.write({"n": n}) for n in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(tmp_path / "a.jsonl")) == sorted([*range(50)] * 4)


def test_a_disk_that_fills_inside_a_line_costs_no_line(tmp_path: Path) -> None:
    with full_disk(tmp_path / "small", kilobytes=64) as disk:
        path = disk.folder / "a.jsonl"
        ours = Journal(path)
        count = 0
        while ours.write({"n": count, "pad": "x" * 700}):
            count += 1
        assert 0 < count < 100
        text = path.read_text()
        assert text.endswith("\n") and [json.loads(line)["n"] for line in text.splitlines()] == [*range(count)]
        disk.grow()
        assert ours.flush() and numbers(path) == [*range(count + 1)]
