"""Attempts: claimed by one, found by all, and telling how they ended."""

import threading
from pathlib import Path

import pytest

from harness.run import attempt as attempt_module
from harness.run.attempt import (
    Outcome,
    claim,
    load,
    read_outcome,
    silent_nodes,
    wait_for,
    write_end,
    write_outcome,
)
from harness.run.folder import RunFolder


def _claim(run: RunFolder, key: str) -> int:
    return claim(run, key, key.split(".")[0], ["n1", "n2"], "10.0.0.1", 1234).number


def test_numbers_go_up_and_the_record_is_there_from_the_start(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert [_claim(run, "7.0"), _claim(run, "7.1")] == [0, 1]
    attempt = load(run, 1)
    assert attempt is not None
    assert (attempt.key, attempt.head, attempt.nodes) == ("7.1", "n1", ["n1", "n2"])
    assert wait_for(run, "7.1").number == 1


def test_two_claims_at_once_get_two_numbers(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    numbers: list[int] = []
    threads = [threading.Thread(target=lambda i=i: numbers.append(_claim(run, f"{i}.0"))) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(8))
    assert not list(run.attempts_dir.glob(".draft*"))


def test_other_starts_of_the_job_are_not_mistaken_for_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path)
    _claim(run, "7.0")
    monkeypatch.setattr(attempt_module.time, "sleep", lambda seconds: _claim(run, "7.1"))
    assert wait_for(run, "7.1").number == 1


def test_a_node_without_a_last_word_is_silent(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt = claim(run, "7.0", "7", ["n1", "n2", "n3"], "h", 1)
    write_end(run, 0, "n1", "terminated")
    write_end(run, 0, "n3", "terminated")
    assert silent_nodes(run, attempt) == ["n2"]


def test_outcome(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    _claim(run, "7.0")
    assert read_outcome(run, 0) is None
    outcome = Outcome("stopped", "timeout", "saved", final=False)
    write_outcome(run, 0, outcome)
    assert read_outcome(run, 0) == outcome
