"""Joining an attempt: who claims it, who waits, and what a full disk does to it."""

import errno
from pathlib import Path

import pytest

from harness.agent import join
from harness.agent.join import join_attempt
from harness.run import files
from harness.run.attempt import claim
from harness.run.folder import RunFolder, RunFolderError
from harness.run.node import Node


def node(index: int = 0, nodes: tuple[str, ...] = ("n1", "n2"), restart_count: int = 0) -> Node:
    return Node(nodes[index], "127.0.0.1", index, list(nodes), "7", restart_count, on_slurm=True)


def test_head_claims_and_the_others_find_it(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    attempt = join_attempt(run, node())
    assert join_attempt(run, node(index=1)) == attempt
    assert (attempt.rendezvous_host, attempt.nodes) == ("127.0.0.1", ["n1", "n2"])
    assert [event["event"] for event in run.events()] == ["attempt_start"]


def test_the_attempt_says_why_the_run_has_started_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.ledger(0).write("restart", reason="node_fail", starts="7.1")
    join_attempt(run, node(restart_count=1))
    assert run.events()[-1]["reason"] == "node_fail"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_full_disk_delays_a_start_and_does_not_end_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = iter([OSError(code, "no room"), OSError(code, "no room"), None])

    def full_twice(*arguments: object) -> object:
        if error := next(tries):
            raise error
        return claim(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(join, "claim", full_twice)
    monkeypatch.setattr(files, "MOST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files.time, "monotonic", iter(range(10_000)).__next__)
    assert join_attempt(RunFolder(tmp_path), node()).number == 0
    printed = capsys.readouterr().out
    assert f"can't write the attempt's record to {tmp_path}/attempts" in printed and "no room" in printed


def test_another_fault_of_the_folder_is_one(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file")
    with pytest.raises(RunFolderError, match="attempts"):
        join_attempt(RunFolder(tmp_path), node())
