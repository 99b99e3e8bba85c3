"""A tree of real processes: stopped, continued, killed as a whole."""

import os
import signal
import subprocess
from pathlib import Path

from harness.preflight import process_tree
from tests.waiting import wait_until_dead


def state(pid: int) -> str:
    """R, S, T (stopped), Z, or nothing for a process that is gone."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text().rpartition(")")[2].split()[0] if stat.exists() else ""


def tree_of(script: str) -> tuple["subprocess.Popen[str]", list[int]]:
    """A shell with a shell with a `sleep` below it that runs `script`'s traps, and their ids."""
    root = subprocess.Popen(["bash", "-c", script], stdout=subprocess.PIPE, text=True)
    assert root.stdout is not None
    return root, [root.pid, *map(int, root.stdout.readline().split())]


def test_all_are_asked_to_end_and_who_does_not_is_killed() -> None:
    stubborn = "bash -c 'trap \"\" TERM; sleep 60 & echo $! $$; wait; sleep 60' & wait"
    root, (_, *below) = tree_of(f"trap 'echo tidied; exit 3' TERM; {stubborn}")
    process_tree.end(root.pid, 0.3)
    assert root.stdout is not None and root.stdout.read() == "tidied\n"
    assert root.wait(10) == 3
    wait_until_dead(below)


def test_the_whole_tree_stops_goes_on_and_dies() -> None:
    root, tree = tree_of("bash -c 'sleep 60 & echo $! $$; wait' & wait")
    assert sorted(process_tree.freeze(root.pid)) == sorted(tree)
    os.waitid(os.P_PID, root.pid, os.WSTOPPED)
    assert state(root.pid) == "T"
    process_tree.send(tree, signal.SIGCONT)
    os.waitid(os.P_PID, root.pid, os.WCONTINUED)
    process_tree.kill(root.pid)
    assert root.wait(10) == -signal.SIGKILL
    assert root.stdout is not None and root.stdout.read() == ""  # ends when the last of them has let go of it
    wait_until_dead(tree[1:])
    process_tree.kill(root.pid)  # gone: nothing happens
