"""Preparation as Slurm array jobs, on a real cluster."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data.errors import DataError
from harness.data.preparation.slurm import SlurmOptions, parse_slurm
from tests.data.preparation.conftest import add_what_is_passed_over, mixed_documents, story, write_documents
from tests.data.preparation.test_resume import command, completed
from tests.slurm_cluster import SlurmCluster
from tests.waiting import wait_for

SLURM = ["--slurm", "partition=main,time=0:05:00,tasks=3,mem_gb=1"]
ENDED = 120
"""Seconds until a chain of jobs has ended, at most."""


def call(slurm: SlurmCluster, root: Path, *extra: str, allowed: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(root, "out", *extra, allowed=allowed), env=slurm.env, capture_output=True, text=True, timeout=100
    )


def wait_until_gone(slurm: SlurmCluster) -> None:
    """Until no job is queued or runs."""

    def queue() -> str:
        return subprocess.run(
            ["squeue", "-h"], env=slurm.env, capture_output=True, text=True, check=True
        ).stdout.strip()

    wait_for(lambda: not queue(), "all jobs end", ENDED, every=0.3)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Input and a recipe, in a folder that all nodes see."""
    add_what_is_passed_over(write_documents(tmp_path / "in", mixed_documents(), files=8))
    (tmp_path / "recipe.yaml").write_text("exact_dedup: true\n")
    return tmp_path


def test_the_environment_does_not_overrule_what_was_asked(root: Path, tmp_path: Path) -> None:
    """sbatch takes SBATCH_* for options that win over the script's own."""
    tools, seen = tmp_path / "tools", tmp_path / "seen"
    tools.mkdir()
    (tools / "sbatch").write_text(f"#!/bin/sh\nenv >> {seen}\necho Submitted batch job 5\n")
    (tools / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "SBATCH_PARTITION": "urgent", "SLURM_NTASKS": "9",
                   "SLURM_CLUSTERS": "c2"}  # fmt: skip
    done = subprocess.run(command(root, "out", *SLURM), env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    variables = {line.partition("=")[0] for line in seen.read_text().splitlines()}
    assert "SLURM_CLUSTERS" in variables and not variables & {"SBATCH_PARTITION", "SLURM_NTASKS"}


@pytest.mark.slurm
def test_array_jobs_make_what_one_machine_makes(slurm_cluster: SlurmCluster, root: Path) -> None:
    done = call(slurm_cluster, root, *SLURM)
    assert done.returncode == 0, done.stderr
    assert "submitted (filter " in done.stdout and "finish " in done.stdout
    assert done.stdout.endswith("/out: passed over 1 file (unknown suffix 1)\n")
    again = call(slurm_cluster, root, *SLURM)
    assert "are making it; tasks done: filter " in again.stdout or "is already complete" in again.stdout
    wait_until_gone(slurm_cluster)
    assert (root / "out" / "manifest.json").exists(), logs(root)
    assert "is already complete" in call(slurm_cluster, root, *SLURM).stdout
    subprocess.run(command(root, "local"), check=True, capture_output=True)
    here, there = (json.loads((root / name / "manifest.json").read_text()) for name in ("local", "out"))
    for key in ("files", "steps", "made_from", "passed_over"):
        assert here[key] == there[key]
    assert there["passed_over"] == {"files": {"unknown suffix": 1}, "rows": {"empty text": 8, "bad row": 8}}
    assert "passed over 1 file (unknown suffix 1) and 16 rows (" in (root / "out/logs/finish.out").read_text()
    assert not list((root / "out").rglob("*.pik")) and not (root / ".out.partial").exists()


@pytest.mark.slurm
def test_a_job_that_failed_is_named_and_gone_on_with(slurm_cluster: SlurmCluster, root: Path) -> None:
    broken = root / "in" / "07.jsonl"
    broken.write_text(json.dumps({"text": story(50)}) + "\n{broken\n{text\n")
    assert call(slurm_cluster, root, *SLURM).returncode == 0
    wait_until_gone(slurm_cluster)
    assert not (root / "out").exists()
    before = completed(root / ".out.partial")
    assert 0 < len(before) < 8
    again = call(slurm_cluster, root, allowed=2)  # what is left, on this machine
    assert again.returncode == 0, again.stderr
    assert "passed over 1 file (unknown suffix 1) and 16 rows (bad row 9, empty text 7)" in again.stdout
    manifest = json.loads((root / "out" / "manifest.json").read_text())
    assert manifest["bad_lines"] == 9


@pytest.mark.slurm
def test_what_sbatch_refuses(slurm_cluster: SlurmCluster, root: Path) -> None:
    done = call(slurm_cluster, root, "--slurm", "partition=nowhere")
    assert done.returncode == 2
    assert "--slurm: cannot submit" in done.stderr and "invalid partition specified: nowhere" in done.stderr
    assert "Traceback" not in done.stderr


def logs(root: Path) -> str:
    """What the jobs printed."""
    return "\n".join(f"{file}:\n{file.read_text()}" for file in root.glob(".out.partial/logs/**/*.out"))


def test_options() -> None:
    assert parse_slurm("partition=cpu,tasks=50,account=team") == SlurmOptions(
        "cpu", tasks=50, flags={"account": "team"}
    )
    with pytest.raises(DataError) as error:
        parse_slurm("tasks=many,cpus,account=a,account=b")
    for part in (
        "account is given twice",
        "tasks=many: must be a whole number from 1",
        "'cpus' is no key=value",
        "partition is missing",
    ):
        assert part in str(error.value)


def test_without_slurm(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    done = subprocess.run(command(root, "out", *SLURM), capture_output=True, text=True)
    assert done.returncode == 2
    assert "--slurm: cannot submit: [Errno 2] No such file or directory: 'sbatch'" in done.stderr
