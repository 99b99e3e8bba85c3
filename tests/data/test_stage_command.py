"""`python -m harness.data stage` as it is typed."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.data.__main__ import main
from harness.data.stage_peers import peers_dir
from harness.data.stage_plan import plan_files
from harness.data.stage_status import StageState, read_status, status_path
from tests.data.staging import contents, staging_config, write_source
from tests.tiny import tiny_run


@pytest.fixture
def web(tmp_path: Path) -> Path:
    return write_source(tmp_path / "web", 3, tokens=100_000)


def typed(web: Path, *more: str) -> list[str]:
    root = web.parent
    return ["stage", "+exp=tiny", f"data.sources.demo.path={web}", f"runs_dir={root}/runs", "data.eos_token_id=0",
            f"data.stage_to={root}/scratch", "data.seq_len=16", *more]  # fmt: skip


def copies(web: Path) -> Path:
    scratch = web.parent / "scratch"
    return plan_files(staging_config({"demo": web}, scratch), scratch)[0].copy.parent


def test_a_dry_run_says_how_much_and_how_long_and_does_nothing(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(web, "--dry-run", "data.stage_bytes_per_second=1000")) == 0
    said = capsys.readouterr().out.splitlines()
    size = sum(map(len, contents(web).values()))
    assert said[0].split() == ["source", "files", "size", "already", "staged"]
    assert said[1].split()[:2] == ["demo", "10"]
    assert f"to copy to data.stage_to={web.parent}/scratch" in said[2]
    assert "it fits" in said[3]
    assert re.match(rf"about {round(size / 1000) // 60} min \d+ s at 1.0 kB/s \(data.stage_bytes_per_second\)", said[4])
    assert not (web.parent / "scratch").exists() and not (web.parent / "runs").exists()


def test_a_dry_run_of_what_is_there_or_does_not_fit(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(web, "--dry-run", f"data.stage_keep_free_bytes={1 << 60}")) == 0
    assert "are missing: what does not fit is read where it is" in capsys.readouterr().out
    assert main(typed(web)) == 0
    capsys.readouterr()
    assert main(typed(web, "--dry-run", f"data.stage_keep_free_bytes={1 << 60}")) == 0
    said = capsys.readouterr().out
    assert "0 B of " in said and "missing" not in said and "about" not in said


@pytest.mark.parametrize("when", ["before", "while_training"])
def test_staging_here_and_now(web: Path, capsys: pytest.CaptureFixture[str], when: str) -> None:
    assert main(typed(web, f"data.stage_when={when}")) == 0
    assert contents(copies(web)) == contents(web)
    assert re.search(r"done: staged 6\d\d\.\d kB of 6\d\d\.\d kB \(100%\)", capsys.readouterr().out)
    status = read_status(status_path(web.parent / "scratch", "tiny", socket.gethostname()))
    assert status is not None and status.state is StageState.done


def test_what_does_not_fit_is_an_exit_code(web: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(typed(web, f"data.stage_keep_free_bytes={1 << 60}")) == 1
    assert "partial: staged 0 B" in capsys.readouterr().out


def test_a_spare_node_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run's own config, and a line in its ledger."""
    monkeypatch.setenv("HARNESS_NODE", "spare")
    run = tiny_run(tmp_path, data__stage_to=str(tmp_path / "scratch"))
    assert main(["stage", "--run", str(run.path)]) == 0
    start, done = run.events()
    assert (start["event"], start["node"], start["attempt"]) == ("stage_start", "spare", None)
    assert (done["event"], done["state"], done["files"]) == ("stage_done", "done", 2)
    told = read_status(run.staging_dir / "spare.json")
    assert told is not None and told.ready
    status = read_status(status_path(tmp_path / "scratch", "run", "spare"))
    assert status is not None and status.ready


def test_bad_input(web: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["stage", "+exp=tiny"]) == 2
    assert "data.stage_to=null: nothing is staged" in capsys.readouterr().err
    assert main(["stage", "--run", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    assert main(["stage", "+exp=tiny", "--run", str(tmp_path)]) == 2
    assert "has a config of its own; leave out +exp=tiny" in capsys.readouterr().err
    assert main(typed(web, "data.stage_threads=0")) == 2
    assert "data.stage_threads=0: must be at least 1" in capsys.readouterr().err
    assert main(typed(web, "data.sources.demo.path=/none")) == 2
    assert "data.sources.demo.path=/none cannot be read" in capsys.readouterr().err
    status = read_status(status_path(web.parent / "scratch", "tiny", socket.gethostname()))
    assert status is not None and status.state is StageState.failed and "/none cannot be read" in status.problems[0]


def test_a_node_serves_until_it_is_told_to_end_and_never_shows_the_token(web: Path) -> None:
    """Two nodes, each a process with a disk of its own; the second one gets what the first one has."""
    root = web.parent
    environment = {**os.environ, "HARNESS_NODE": "n1"}
    command = [sys.executable, "-m", "harness.data", *typed(web, "--serve", "127.0.0.1")]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    folder = peers_dir(root / "runs" / "tiny")
    deadline = time.monotonic() + 60
    while not (
        (status := read_status(status_path(root / "scratch", "tiny", "n1")))
        and status.ready
        and (folder / "n1.json").exists()
    ):
        assert time.monotonic() < deadline and first.poll() is None
        time.sleep(0.1)
    command = [part.replace("/scratch", "/scratch2") for part in command]
    second = subprocess.Popen(command, env={**environment, "HARNESS_NODE": "n2"}, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)  # fmt: skip
    while not ((status := read_status(status_path(root / "scratch2", "tiny", "n2"))) and status.ready):
        assert time.monotonic() < deadline and second.poll() is None
        time.sleep(0.1)
    assert status.bytes_from_peers == status.bytes_wanted
    token = (folder / "token").read_text()
    for process in (first, second):
        assert token not in Path(f"/proc/{process.pid}/cmdline").read_text()
        assert token not in Path(f"/proc/{process.pid}/environ").read_text()
        process.send_signal(signal.SIGTERM)
    said = [process.communicate(timeout=20)[0] for process in (first, second)]
    assert [process.returncode for process in (first, second)] == [0, 0]
    assert not any(token in text for text in said) and "from other nodes" in said[1]
    assert sorted(path.name for path in folder.iterdir()) == ["token"]
