"""What the batch script's shell does on a host where Python can't start."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.cluster.submit import FALLBACK

LIMIT = 3


class Host:
    """A host of a job, with stand-ins for Slurm's commands that write down what they are asked."""

    def __init__(self, folder: Path, job: str, nodes: str = "n1 n2 n3") -> None:
        self.folder, self.asked = folder, folder / "asked"
        (folder / "run").mkdir()
        self.events = folder / "run" / "events.jsonl"
        self._program(
            "scontrol",
            f'case "$*" in\n*"show job"*) echo "{job}" ;;\n*hostnames*) echo "${{@: -1}}" | tr , "\\n" ;;\n*) echo "$*" >> {self.asked} ;;\nesac',
        )
        self._program("sinfo", f"printf '%s\\n' {nodes}")

    def _program(self, name: str, body: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def fall_back(self, status: int = 127, start: int = 0, wanted: int = 2) -> "subprocess.CompletedProcess[str]":
        environment = {
            "PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1",
            "SLURM_RESTART_COUNT": str(start), "SLURM_JOB_NUM_NODES": str(wanted),
        }  # fmt: skip
        script = f'{FALLBACK.read_text()}\nharness_fallback {status} "{self.folder}/run" {LIMIT}\n'
        return subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=20)

    def ledger(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.events.read_text().splitlines()]


def job(state: str = "RUNNING", restarts: int = 0, excluded: str = "(null)") -> str:
    return f"JobId=7 JobState={state} Reason=None Requeue=1 Restarts={restarts} Partition=main ExcNodeList={excluded} End=1"


def test_the_job_goes_on_without_this_host(tmp_path: Path) -> None:
    host = Host(tmp_path, job())
    done = host.fall_back()
    assert done.returncode == 70 and "could not start on n1 (status 127)" in done.stdout, done.stderr
    assert host.asked.read_text().splitlines() == [
        "requeue 7",
        "update jobid=7 excnodelist=n1",
        "update jobid=7 starttime=now+10",
    ]
    (event,) = host.ledger()
    assert (event["event"], event["starts"], event["bad_nodes"], event["how"]) == (
        "restart",
        "7.1",
        ["n1"],
        "batch script",
    )


def test_a_host_on_which_python_was_killed_is_not_to_blame(tmp_path: Path) -> None:
    host = Host(tmp_path, job())
    assert host.fall_back(status=137).returncode == 70
    assert "requeue 7" in host.asked.read_text() and "excnodelist" not in host.asked.read_text()
    (event,) = host.ledger()
    assert event["bad_nodes"] == [] and event["why"] == "the harness was killed on n1 (SIGKILL)"


def test_what_is_excluded_already_stays_excluded(tmp_path: Path) -> None:
    host = Host(tmp_path, job(excluded="n3"), nodes="n1 n2 n3 n4")
    host.fall_back()
    assert "update jobid=7 excnodelist=n3,n1" in host.asked.read_text()


def test_the_last_nodes_are_not_excluded(tmp_path: Path) -> None:
    """Slurm would keep the job pending for ever."""
    host = Host(tmp_path, job(), nodes="n1 n2")
    host.fall_back(wanted=2)
    assert "excnodelist" not in host.asked.read_text() and "requeue 7" in host.asked.read_text()


def test_it_gives_up_after_a_few_in_a_row(tmp_path: Path) -> None:
    codes = []
    host = Host(tmp_path, job())
    host.events.write_text('{"time": 1, "event": "submitted"}\n')
    for start in range(LIMIT + 1):
        host._program("scontrol", f'case "$*" in *"show job"*) echo "{job(restarts=start)}" ;; esac')
        codes.append(host.fall_back(start=start).returncode)
    assert codes == [70] * LIMIT + [67]
    assert host.ledger()[-1]["event"] == "gave_up" and "3 such starts in a row" in host.ledger()[-1]["why"]


def test_a_start_that_worked_in_between_begins_the_count_anew(tmp_path: Path) -> None:
    host = Host(tmp_path, job())
    failed = '{"time": 1, "event": "restart", "how": "batch script"}\n'
    host.events.write_text(failed * 5 + '{"time": 2, "event": "attempt_start"}\n' + failed)
    assert host.fall_back().returncode == 70


@pytest.mark.parametrize("shown", [job("CANCELLED"), job("COMPLETING"), job(restarts=1)])
def test_a_cancelled_or_newer_job_is_left_alone(tmp_path: Path, shown: str) -> None:
    host = Host(tmp_path, shown)
    assert host.fall_back(status=137).returncode == 70
    assert not host.asked.exists() and not host.events.exists()
