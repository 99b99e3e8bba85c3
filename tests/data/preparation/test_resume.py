"""A preparation that was killed goes on where it was, redoes nothing that was complete, and makes the same files."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from harness.data.__main__ import main
from tests.data.preparation.conftest import add_what_is_passed_over, mixed_documents, story, write_documents

PROGRAM = """
import sys
import harness.data.preparation.inputs as inputs
inputs.TASK_BYTES = 8000
from harness.data.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def command(root: Path, output: str, *extra: str, allowed: int = 1) -> list[str]:
    where = ["--input", str(root / "in"), "--output", str(root / output), "--recipe", str(root / "recipe.yaml")]
    return [
        sys.executable,
        "-c",
        PROGRAM,
        "prepare",
        *where,
        "--vocab-size",
        "500",
        "--max-bad-lines",
        str(allowed),
        *extra,
    ]


def completed(partial: Path) -> dict[str, int]:
    """What tasks have completed: their marks -> when they were set."""
    return {str(mark.relative_to(partial)): mark.stat().st_mtime_ns for mark in partial.glob("logs/*/completions/*")}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight input files, so as many tasks in each stage that reads documents."""
    add_what_is_passed_over(write_documents(tmp_path / "in", mixed_documents(), files=8))
    (tmp_path / "recipe.yaml").write_text("exact_dedup: true\n")
    return tmp_path


def kill_when(root: Path, tasks: int) -> str:
    """Start a preparation, kill -9 it once so many tasks are complete, and see that none of its processes goes on."""
    process = subprocess.Popen(command(root, "out"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while process.poll() is None and len(completed(root / ".out.partial")) < tasks:
        time.sleep(0.005)
    children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    return output


def assert_same_output(root: Path) -> None:
    """What was made in pieces is what an undisturbed preparation makes."""
    subprocess.run(command(root, "whole"), check=True, capture_output=True)
    whole, out = (json.loads((root / name / "manifest.json").read_text()) for name in ("whole", "out"))
    for key in ("files", "steps", "tokens", "made_from", "passed_over"):
        assert whole[key] == out[key]
    files = len(list((root / "in").glob("*.jsonl")))
    rows = {"empty text": files, "bad row": files} if (root / "in" / "notes.pdf").exists() else {}
    assert out["passed_over"] == {"files": {"unknown suffix": 1} if rows else {}, "rows": rows}
    assert out["steps"][0]["documents"] == len(mixed_documents())
    assert not (root / ".out.partial").exists()


def test_killed_again_and_again(root: Path) -> None:
    partial, chance, kept, kills = root / ".out.partial", random.Random(3), {}, 0
    while not (root / "out").exists():
        kill_when(root, len(kept) + chance.randint(1, 6))
        if partial.exists():
            kills += 1
            now = completed(partial)
            assert now.items() >= kept.items()  # nothing that was complete was done again
            kept = now
    assert kills >= 3
    assert_same_output(root)


def test_killed_while_it_looks_for_near_duplicates(root: Path) -> None:
    shutil.rmtree(root / "in")
    write_documents(root / "in", mixed_documents(), files=4)
    with (root / "recipe.yaml").open("a") as recipe:
        recipe.write("minhash_dedup: {num_buckets: 2, hashes_per_bucket: 6}\n")
    kill_when(root, 7)  # 4 of filter, 1 of exact, 2 of signatures
    kept = completed(root / ".out.partial")
    assert any(mark.startswith("logs/signatures") for mark in kept)
    done = subprocess.run(command(root, "out"), check=True, capture_output=True, text=True)
    assert "going on with what an earlier call left unfinished" in done.stdout
    assert "filtering" not in done.stderr and "signatures" in done.stderr
    assert_same_output(root)


def test_other_options_are_refused_until_told_to_begin_afresh(root: Path) -> None:
    process = subprocess.Popen(command(root, "out"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(completed(root / ".out.partial")) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    before = completed(root / ".out.partial")
    done = subprocess.run(command(root, "out", "--text-key", "id"), capture_output=True, text=True)
    assert done.returncode == 2
    (root / "recipe.yaml").write_text("{exact_dedup: true, word_language: fr}")
    (root / "in" / "99.jsonl").write_text(json.dumps({"text": story(99)}))
    done = subprocess.run(command(root, "out"), capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        "holds an unfinished preparation from something else (identity, recipe, tasks differ; see its job.json)"
        in done.stderr
    )
    assert "or begin afresh with --restart" in done.stderr
    assert completed(root / ".out.partial").items() >= before.items()
    done = subprocess.run(command(root, "out", "--restart"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((root / "out" / "manifest.json").read_text())
    assert manifest["steps"][0]["documents"] == 61 and len(manifest["steps"]) == 2


@pytest.mark.parametrize("content", ["", "{}", '{"made_from": {"inputs": 1}, "inputs": {"root": "x"}}'])
def test_a_job_of_another_version_is_not_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str
) -> None:
    texts = write_documents(tmp_path / "in", [story(1)])
    done = tmp_path / ".out.partial" / "logs" / "tokenise" / "completions" / "00000"
    done.parent.mkdir(parents=True)
    done.touch()
    (tmp_path / ".out.partial" / "job.json").write_text(content)
    where = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--vocab-size", "300"]
    assert main(where) == 2
    assert "holds an unfinished preparation from something else" in capsys.readouterr().err
    assert done.exists()
    assert main([*where, "--restart"]) == 0


@pytest.mark.parametrize("where", ["shutil.rmtree", "fsync_folder", "os.rename"])
def test_killed_at_the_very_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """All is made and described, and perhaps what only the tasks needed is gone."""
    add_what_is_passed_over(write_documents(tmp_path / "in", [story(1), story(2)]))
    command = ["prepare", "--input", f"{tmp_path}/in", "--output", f"{tmp_path}/out", "--vocab-size", "300"]

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"harness.data.preparation.finish.{where}", killed)
        assert main([*command, "--max-bad-lines", "1"]) == 130
    assert not (tmp_path / "out").exists()
    capsys.readouterr()
    assert main([*command, "--max-bad-lines", "1"]) == 0
    said = capsys.readouterr()
    assert "tokenising" not in said.err
    assert "in 2 documents" in said.out and "passed over 1 file (unknown suffix 1) and 2 rows (" in said.out
    assert {entry.name for entry in tmp_path.iterdir()} == {"in", "out"}
    assert not {"lock", "work", "job.json"} & {entry.name for entry in (tmp_path / "out").iterdir()}


def test_a_worker_that_is_killed(root: Path) -> None:
    """As by the kernel, short of memory: the preparation says so and does not hang."""
    process = subprocess.Popen(command(root, "out"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    while not (victims := task_processes(process.pid)):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(victims[0].pid, signal.SIGKILL)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "was killed by signal 9. Short of memory? Try fewer --workers; the same command goes on from here." in output
    subprocess.run(command(root, "out"), check=True, capture_output=True)


def test_stopped_by_the_user(root: Path) -> None:
    """Ctrl-C reaches the whole group of processes."""
    process = subprocess.Popen(
        command(root, "out"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    while not completed(root / ".out.partial"):
        assert process.poll() is None
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 130, output
    assert "stopped; what was completed is kept: the same command goes on from there" in output
    assert "Traceback" not in output
    psutil.wait_procs(children, timeout=20)
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert completed(root / ".out.partial")


def task_processes(pid: int) -> list[psutil.Process]:
    """The forkserver's children: one for each task at work."""
    found = []
    for child in psutil.Process(pid).children():
        if "forkserver" in " ".join(child.cmdline()):
            found += child.children()
    return found


def test_what_was_not_begun_is_no_obstacle(tmp_path: Path) -> None:
    """An error before any task was complete leaves nothing, so other options need no --restart."""
    texts = write_documents(tmp_path / "in", [story(1)])
    (texts / "00.jsonl").write_text("{broken")
    where = ["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--vocab-size", "300"]
    assert main(where) == 2
    assert not (tmp_path / ".out.partial").exists()
    (texts / "00.jsonl").write_text(json.dumps({"text": story(1)}))
    assert main(where) == 0
