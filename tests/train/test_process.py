import os
import signal
import subprocess
import sys
import textwrap

import pytest

from harness.train.exits import BadConfig
from harness.train.process import Place, ensure_rendezvous, threads_per_rank
from tests.waiting import wait_until_dead


def test_place_is_read_from_the_environment() -> None:
    place = Place.from_environment(
        {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "HARNESS_ATTEMPT": "5",
         "HARNESS_NODE": "n1", "HARNESS_BOARD_DIR": "/boards", "TORCHELASTIC_RESTART_COUNT": "2"}
    )  # fmt: skip
    assert (place.rank, place.local_rank, place.world_size, place.local_world_size) == (3, 1, 4, 2)
    assert (place.attempt, place.restart, place.node, str(place.boards)) == (5, 2, "n1", "/boards")
    alone = Place.from_environment({})
    assert (alone.rank, alone.world_size, alone.attempt, alone.boards) == (0, 1, None, None)
    with pytest.raises(BadConfig, match="environment variable RANK=x: must be a whole number"):
        Place.from_environment({"RANK": "x"})


def test_threads_are_this_ranks_share_unless_the_user_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert threads_per_rank(1) == len(os.sched_getaffinity(0))
    assert threads_per_rank(1000) == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_per_rank(1) is None


def test_several_ranks_need_a_rendezvous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(BadConfig, match="start the ranks with torchrun or harness"):
        ensure_rendezvous(2)


def test_rank_ignores_usr2_tells_its_stack_and_dies_with_its_launcher() -> None:
    rank = "from harness.train.process import prepare_process; prepare_process(); import sys, time; "
    rank += "print(__import__('os').getpid(), flush=True); time.sleep(60)"
    launcher = textwrap.dedent(
        f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", {rank!r}])
        time.sleep(60)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stderr is not None
    pid = int(process.stdout.readline())
    os.kill(pid, signal.SIGUSR2)
    os.kill(pid, signal.SIGUSR1)
    assert "most recent call first" in process.stderr.readline()
    process.kill()
    process.wait()
    process.stdout.read()  # ends when the last holder of the pipe has gone
    wait_until_dead([pid])  # a rank does not outlive its launcher
