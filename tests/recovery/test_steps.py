"""Starting agents through srun: in which steps, under which numbers, and what becomes of the others when one fails."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from harness import slurm
from harness.recovery import steps
from harness.recovery.steps import Ended, Steps
from tests.waiting import wait_for, wait_until_dead


@pytest.fixture
def srun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for srun that writes its arguments to `calls`, then runs `fake.sh`."""
    program = tmp_path / "srun"
    program.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/calls\n. {tmp_path}/fake.sh\n')
    program.chmod(0o755)
    (tmp_path / "fake.sh").write_text("exit 0\n")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "expand_nodes", lambda text: ["n2", "n3"] if "[" in text else [text])
    for name in ("SETTLE_SECONDS", "END_SECONDS"):
        monkeypatch.setattr(steps, name, 0.5)
    return tmp_path


def run(srun: Path, fake: str = "exit 0", nodes: int = 3, restart_count: int = 0) -> Ended:
    (srun / "fake.sh").write_text(textwrap.dedent(fake))
    return Steps([f"n{n}" for n in range(1, nodes + 1)], "n1", restart_count, 2, ["agent"]).run()


def calls(srun: Path) -> list[str]:
    return (srun / "calls").read_text().splitlines()


def test_one_agent_per_node(srun: Path) -> None:
    assert run(srun).status == 0
    (call,) = calls(srun)
    for part in ("--nodes=3", "--ntasks=3", "--nodelist=n1,n2,n3", "--cpus-per-task=2", "--kill-on-bad-exit=0"):
        assert part in call.split()
    assert call.endswith(" agent")


def test_steps_are_too_small_for_slurms_tree(srun: Path) -> None:
    """A parent in it would wait a minute for a child that has died."""
    run(srun, nodes=14)
    sizes = sorted(int(call.partition("--nodes=")[2].split()[0]) for call in calls(srun))
    assert sizes == [2, 6, 6]
    named = [name for call in calls(srun) for name in call.partition("--nodelist=")[2].split()[0].split(",")]
    assert sorted(named) == sorted(f"n{n}" for n in range(1, 15)), "every node has one agent"


@pytest.mark.parametrize(("restart_count", "used_up"), [(0, 0), (1, 2), (3, 6), (8, 0)])
def test_starts_number_their_steps_differently(srun: Path, restart_count: int, used_up: int) -> None:
    run(srun, nodes=8, restart_count=restart_count)
    assert sum(call.endswith(" true") for call in calls(srun)) == used_up
    assert all("agent" in call for call in calls(srun)[used_up:])


def test_using_up_a_number_takes_no_gpu(srun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """srun reads what the job asked for from its environment, and refuses it beside --gres=none: no number would be used up."""
    monkeypatch.setenv("SLURM_GPUS_PER_NODE", "8")
    run(srun, f'echo "${{SLURM_GPUS_PER_NODE:-none}} $*" >> {srun}/gpus', restart_count=1)
    used_up, agents = (srun / "gpus").read_text().splitlines()
    assert used_up.startswith("none --overlap") and agents.startswith("8 --unbuffered")


@pytest.mark.parametrize(
    ("said", "faults", "statuses"),
    [
        ("srun: error: n2: task 1: Killed", {"n2": "its agent was killed (SIGKILL)"}, {}),
        ("srun: error: n2: task 1: Exited with exit code 66", {"n2": "its agent exited with status 66"}, {"n2": 66}),
        ("srun: error: n[2-3]: tasks 1-2: Exited with exit code 2", dict.fromkeys(("n2", "n3"), "its agent exited with status 2"), {"n2": 2, "n3": 2}),
        ("srun: error: n2: task 1: Segmentation fault (core dumped)", {"n2": "its agent ended: Segmentation fault"}, {}),
        ("srun: error: n2: task 1: Out Of Memory", {"n2": "its agent ended: Out Of Memory"}, {}),
        ("srun: error: Node failure on n2", {"n2": "lost"}, {}),
        ("srun: error: Task launch for StepId=5.0 failed on node n2: Communication connection failure", {"n2": "Communication connection failure"}, {}),
        ("an agent prints: n2: task 1: Killed", {}, {}),
    ],
)  # fmt: skip
def test_what_srun_says_of_an_agents_end(
    srun: Path, said: str, faults: dict[str, str], statuses: dict[str, int]
) -> None:
    ended = run(srun, f'echo "{said}" >&2; exit 1')
    assert (ended.status, ended.faults, ended.statuses) == (1, faults, statuses)


def test_why_slurm_could_not_execute_the_agent(srun: Path) -> None:
    ended = run(srun, """
        echo "slurmstepd-n2: error: execve(): /venv/bin/python: No such file or directory" >&2
        echo "srun: error: n2: task 1: Exited with exit code 2" >&2
        exit 2
    """)  # fmt: skip
    assert ended.complaints == {"n2": "execve(): /venv/bin/python: No such file or directory"}


def test_a_step_that_slurm_does_not_create(srun: Path) -> None:
    ended = run(srun, 'echo "srun: error: Unable to create step for job 5: Job is pending" >&2; exit 1')
    assert (ended.faults, ended.said) == ({}, "Unable to create step for job 5: Job is pending")


def test_when_one_agent_fails_the_others_are_asked_to_end(srun: Path) -> None:
    """n2's is killed; what the others then end with is not held against their nodes."""
    ended = run(srun, """
        trap 'echo "srun: error: n1: task 0: Exited with exit code 143" >&2; exit 143' USR1
        echo "srun: error: n2: task 1: Killed" >&2
        while true; do sleep 0.1; done
    """)  # fmt: skip
    assert ended.status != 0
    assert ended.faults == {"n2": "its agent was killed (SIGKILL)"}


def test_a_failure_in_one_step_ends_the_other_steps_too(srun: Path) -> None:
    ended = run(srun, """
        case "$*" in
          *--nodelist=n1,*) trap 'exit 143' USR1; while true; do sleep 0.1; done ;;
          *) echo "srun: error: n7: task 0: Killed" >&2; exit 137 ;;
        esac
    """, nodes=8)  # fmt: skip
    assert list(ended.faults) == ["n7"] and ended.status == 137


def test_an_srun_that_does_not_end_is_killed_with_its_shepherd(srun: Path) -> None:
    run(srun, f"""
        trap '' USR1 TERM
        sleep 60 &
        echo $$ $! >> {srun}/pids
        echo "srun: error: n2: task 1: Killed" >&2
        wait
        wait
        wait
    """)  # fmt: skip
    wait_until_dead(map(int, (srun / "pids").read_text().split()))


def test_sruns_die_at_once_when_slurm_ends_the_job(srun: Path) -> None:
    """One that outlives its job's requeue would cancel what it takes for its own step."""
    (srun / "fake.sh").write_text(f"trap '' TERM\nsleep 60 &\necho $$ $! > {srun}/pids\nwait\n")
    code = (
        "import signal, functools; from harness.recovery import batch, steps; "
        "ours = steps.Steps(['n1'], 'n1', 0, 1, ['agent']); "
        "signal.signal(signal.SIGTERM, functools.partial(batch._ended_by_slurm, ours)); ours.run()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(lambda: (srun / "pids").read_text().split()[1], "the fake srun says which processes it has")
    process.terminate()
    assert process.wait(10) == 143
    wait_until_dead(map(int, (srun / "pids").read_text().split()))
