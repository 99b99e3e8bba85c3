"""What is done to a run and its cluster: each injury hurts, waits, and undoes what does not heal by itself."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.checkpoint.folders import complete_steps
from harness.run.folder import RunFolder
from slurm.devcluster import cgroups, daemons, network, nodes
from slurm.devcluster.layout import Layout

Injury = Callable[["Victim", random.Random], None]


class Victim:
    """One run on the cluster, and the means to hurt it."""

    def __init__(self, layout: Layout, run: RunFolder, venv: Path, tokens: Path) -> None:
        self.layout, self.run, self.venv, self.tokens = layout, run, venv, tokens
        self.env = daemons.environment(layout)

    @property
    def job_id(self) -> str:
        return str(self.run.record()["job_id"])

    def nodes(self) -> list[str]:
        """Nodes of the newest attempt."""
        started = [event for event in self.run.events() if event["event"] == "attempt_start"]
        return list(started[-1]["nodes"]) if started else self.layout.nodes[:1]

    def pids(self, node: str, part: str) -> list[int]:
        """Processes on `node` whose command line holds `part`."""
        return [
            pid for pid, command in nodes.pids(self.layout, node).items() if part in command and "srun" not in command
        ]

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60).stdout

    def drained(self) -> list[str]:
        """Nodes that Slurm has drained, each with its reason; resumes them."""
        lines = self.slurm(
            "sinfo", "--noheader", "--Node", "--partition=main", "--states=drain", "--format=%N %E"
        ).splitlines()
        for line in lines:
            self.slurm("scontrol", "update", f"nodename={line.split()[0]}", "state=resume")
        return lines

    def heal(self) -> None:
        """Undo whatever an injury has left behind."""
        for daemon in daemons.running(self.layout).values():
            os.kill(daemon, signal.SIGCONT)
        for node in self.layout.nodes:
            if cgroups.is_frozen(self.layout, node):
                cgroups.set_frozen(self.layout, node, False)
            if not network.is_plugged(self.layout, node) and nodes.pids(self.layout, node):
                network.set_plugged(self.layout, node, True)
            if nodes.slurmd_of(self.layout, node) is None:
                nodes.power_on(self.layout, node)


def _kill(part: str) -> Injury:
    def injury(victim: Victim, chance: random.Random) -> None:
        pids = victim.pids(chance.choice(victim.nodes()), part)
        if pids:
            with suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)

    return injury


def power_loss(victim: Victim, chance: random.Random) -> None:
    """A node goes dark, and comes back at once or later."""
    node = chance.choice(victim.nodes())
    nodes.power_off(victim.layout, node)
    time.sleep(chance.choice([1, 5, 20, 40]))
    nodes.power_on(victim.layout, node)


def unplugged(victim: Victim, chance: random.Random) -> None:
    node = chance.choice(victim.nodes())
    network.set_plugged(victim.layout, node, False)
    time.sleep(chance.choice([3, 15, 40]))
    network.set_plugged(victim.layout, node, True)


def frozen(victim: Victim, chance: random.Random) -> None:
    """A node stops in mid-instruction, and thaws while its successor trains."""
    node = chance.choice(victim.nodes())
    cgroups.set_frozen(victim.layout, node, True)
    time.sleep(chance.choice([3, 25, 45]))
    cgroups.set_frozen(victim.layout, node, False)


def slurmd_killed(victim: Victim, chance: random.Random) -> None:
    node = chance.choice(victim.nodes())
    nodes.kill_slurmd(victim.layout, node)
    time.sleep(chance.choice([1, 20]))
    nodes.power_on(victim.layout, node)


def silent_controller(victim: Victim, chance: random.Random) -> None:
    """slurmctld stops; meanwhile an agent is killed."""
    controller = daemons.running(victim.layout)["slurmctld"]
    os.kill(controller, signal.SIGSTOP)
    _kill("harness.agent ")(victim, chance)
    time.sleep(chance.choice([10, 40]))
    os.kill(controller, signal.SIGCONT)


def requeued(victim: Victim, chance: random.Random) -> None:
    victim.slurm("scontrol", "requeue", victim.job_id)


def time_limit(victim: Victim, chance: random.Random) -> None:
    """Slurm's warning before the time limit."""
    victim.slurm("scancel", "--signal=USR2", victim.job_id)


def preempted(victim: Victim, chance: random.Random) -> None:
    node = chance.choice(victim.nodes())
    victim.slurm(
        "sbatch", "--partition=urgent", "--exclusive", f"--nodelist={node}", "--output=/dev/null", "--wrap=sleep 20"
    )
    time.sleep(25)


@contextmanager
def _hidden(victim: Victim, node: str, folder: Path) -> Iterator[None]:
    nodes.run_inside(victim.layout, node, "mount", "-t", "tmpfs", "tmpfs", str(folder))
    try:
        yield
    finally:
        with suppress(Exception):  # the node has lost power meanwhile, and the mount with it
            nodes.run_inside(victim.layout, node, "umount", str(folder))


def no_python(victim: Victim, chance: random.Random) -> None:
    """The virtual environment is away on one node while the job starts anew."""
    with _hidden(victim, chance.choice(victim.layout.nodes), victim.venv):
        requeued(victim, chance)
        time.sleep(40)


def no_data(victim: Victim, chance: random.Random) -> None:
    """The token files are away on one node while the job starts anew."""
    with _hidden(victim, chance.choice(victim.layout.nodes), victim.tokens):
        requeued(victim, chance)
        time.sleep(40)


def hanging_rank(victim: Victim, chance: random.Random) -> None:
    pids = victim.pids(chance.choice(victim.nodes()), "harness.train ")
    if pids:
        with suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGSTOP)


def torn_checkpoint(victim: Victim, chance: random.Random) -> None:
    """The newest checkpoint loses half of a file, and a rank dies."""
    steps = complete_steps(victim.run.checkpoints_dir)
    if len(steps) > 1:  # the one before must be there to go back to
        newest = victim.run.checkpoints_dir / f"step-{max(steps):08d}"
        files = sorted(newest.glob("*.distcp"))
        if files:
            os.truncate(files[0], files[0].stat().st_size // 2)
    _kill("harness.train ")(victim, chance)


def full_disk(victim: Victim, chance: random.Random) -> None:
    """The run folder's file system has no room for a while; at times a rank dies meanwhile."""
    filler = victim.run.path.parent / "filler"
    with suppress(OSError), open(filler, "wb", buffering=0) as f:
        while True:
            f.write(bytes(1 << 16))
    if chance.random() < 0.5:
        _kill("harness.train ")(victim, chance)
    time.sleep(20)
    filler.unlink()


INJURIES: dict[str, Injury] = {
    "kill -9 of a rank": _kill("harness.train "),
    "kill -9 of a launcher": _kill("harness.agent.launcher"),
    "kill -9 of an agent": _kill("harness.agent "),
    "kill -9 of the batch script's Python": _kill("harness.recovery.batch"),
    "power loss": power_loss,
    "unplugged": unplugged,
    "frozen, then thawed": frozen,
    "slurmd killed": slurmd_killed,
    "silent controller, agent killed": silent_controller,
    "scontrol requeue": requeued,
    "time limit": time_limit,
    "preempted": preempted,
    "no Python on a node": no_python,
    "no data on a node": no_data,
    "a rank hangs": hanging_rank,
    "torn checkpoint, rank killed": torn_checkpoint,
    "full disk": full_disk,
}
