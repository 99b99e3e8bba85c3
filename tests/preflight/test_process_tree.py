"""A tree of real processes: stopped, continued, killed as a whole."""

import os
import signal
import subprocess
from pathlib import Path

from harness.preflight import process_tree


def state(pid: int) -> str:
    """R, S, T (stopped), Z, or nothing for a process that is gone."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


def test_the_whole_tree_stops_goes_on_and_dies() -> None:
    script = "bash -c 'sleep 60 & echo $! $$; wait' & wait"
    root = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert root.stdout is not None
    grandchild, child = map(int, root.stdout.readline().split())
    tree = [root.pid, child, grandchild]
    assert sorted(process_tree.freeze(root.pid)) == sorted(tree)
    os.waitid(os.P_PID, root.pid, os.WSTOPPED)
    assert state(root.pid) == "T"
    process_tree.send(tree, signal.SIGCONT)
    os.waitid(os.P_PID, root.pid, os.WCONTINUED)
    process_tree.kill(root.pid)
    assert root.wait(10) == -signal.SIGKILL
    root.stdout.read()  # ends when the last of them has let go of it
    assert {state(child), state(grandchild)} <= {"", "Z"}
    process_tree.kill(root.pid)  # gone: nothing happens
