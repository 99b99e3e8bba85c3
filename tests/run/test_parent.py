"""Processes that end with their parent."""

import os
import signal
import subprocess
import sys

import pytest

from tests.waiting import alive, wait_until_dead

CHILD = "import os, time; from harness.run.parent import die_with; die_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_ends_with_its_parent(number: signal.Signals) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    os.kill(parent.pid, number)
    parent.communicate()
    wait_until_dead([child])


def test_whose_parent_is_gone_already_ends_at_once() -> None:
    code = "from harness.run.parent import die_with; die_with(1 << 22); print('lives on')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
