"""Signals that reach the process that is meant, or none."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from harness.system.processes import Process, started


@pytest.fixture
def child() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_living_process_gets_the_signal(child: "subprocess.Popen[bytes]") -> None:
    process = Process(child.pid, started(child.pid) or -1)
    assert process.alive and process.send(signal.SIGTERM)
    assert child.wait(10) == -signal.SIGTERM
    assert not process.alive and not process.send(signal.SIGKILL)


def test_another_process_with_the_same_id_does_not(child: "subprocess.Popen[bytes]") -> None:
    earlier = Process(child.pid, (started(child.pid) or 0) - 1)
    assert not earlier.alive and not earlier.send(signal.SIGKILL)
    assert child.poll() is None


def test_one_that_has_ended_and_waits_for_its_parent_is_not_alive() -> None:
    child = subprocess.Popen(["true"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert started(child.pid) is None and not Process(child.pid, 0.0).alive
    child.wait()


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_is_never_everybody(pid: int) -> None:
    assert not Process(pid, 0.0).alive and not Process(pid, 0.0).send(signal.SIGTERM)


def test_without_pidfd_the_id_must_do(child: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", missing)
    assert Process(child.pid, started(child.pid) or -1).send(signal.SIGKILL)
    assert child.wait(10) == -signal.SIGKILL
