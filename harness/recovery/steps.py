"""Starts the agents of all nodes through srun, hears how they end, and ends the others when one has failed.

Slurm ends a step by passing messages up a tree of its nodes, and a parent waits 60 s for a child that has died; then it may
drain the healthy parent ("Kill task failed"). Steps of fewer than 7 nodes have no tree (REVERSE_TREE_WIDTH, a constant in
Slurm's source), so the agents run in several small steps.

A step is known by its number alone, which begins at 0 again when a job is requeued. An srun that wakes up on a thawed node,
or a request that the controller repeats a minute later, would so cancel the step of a healthy new start. Hence starts
number their steps differently: each uses up a few numbers first.
"""

import contextlib
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from harness import slurm

NODES_PER_STEP = 6
DISTINCT_STARTS = 8
"""Starts in a row whose steps have different numbers: more than can be within reach of each other's late requests."""
NUMBERS_AT_A_TIME = 16
ASKED_OF_GPUS = ("SLURM_GPU", "SLURM_GRES", "SLURM_TRES")
SETTLE_SECONDS = 2.0
"""After one agent has failed, the others get this long to fail for the same reason and say so themselves."""
END_SECONDS = 15.0
"""Then they are asked to end (SIGUSR1), and get this long; after that their step is killed."""
TASK_ENDED = re.compile(r"^srun: error: (?P<nodes>[^:\s]+): tasks? [\d,-]+: (?P<how>.+?)(?: \(core dumped\))?$")
NOT_EXECUTED = re.compile(r"^slurmstepd-(?P<node>[^:\s]+): error: (?P<what>(?:execve|couldn't chdir)\b.*)$")
EXITED = re.compile(r"Exited with exit code (\d+)")
NOT_LAUNCHED = re.compile(
    r"^srun: error: (?:Task launch for \S+ failed on node (?P<node>[^:\s]+): |Node failure on (?P<lost>\S+))(?P<how>.*)$"
)


@dataclass
class Ended:
    """How the agents ended."""

    status: int = 0
    """0 if all sruns ended well, else the status of one that did not."""
    faults: dict[str, str] = field(default_factory=dict)
    """Node -> how its agent ended, for those that failed before the others were asked to end."""
    statuses: dict[str, int] = field(default_factory=dict)
    """Node -> exit status of its agent, for those of them that exited."""
    complaints: dict[str, str] = field(default_factory=dict)
    """Node -> why Slurm could not execute our command there."""
    said: str = ""
    """srun's last complaint that names no node."""


class Steps:
    """One agent per node, in steps of a few nodes each."""

    def __init__(self, nodes: list[str], here: str, restart_count: int, cpus_per_task: int, command: list[str]) -> None:
        """`here`: the node that we run on. `restart_count` tells which start of the job this is."""
        self._nodes, self._here, self._restart_count, self._command = nodes, here, restart_count, command
        self._cpus = cpus_per_task
        self._sruns: list[subprocess.Popen[str]] = []
        self._ended = Ended()
        self._asked = False
        self._lock = threading.Lock()

    def run(self) -> Ended:
        """Start all agents and wait until all have ended."""
        groups = [self._nodes[at : at + NODES_PER_STEP] for at in range(0, len(self._nodes), NODES_PER_STEP)]
        self._use_up_numbers(self._restart_count % DISTINCT_STARTS * len(groups))
        self._sruns = [self._start(group) for group in groups]
        readers = [threading.Thread(target=self._listen, args=(srun,), daemon=True) for srun in self._sruns]
        for reader in readers:
            reader.start()
        self._wait_for_a_fault()
        if self._running():
            self._end_the_others()
        for reader in readers:
            reader.join(1.0)
        return self._ended

    def kill(self) -> None:
        """Kill every srun and its shepherd at once, before either can cancel anything."""
        for srun in self._sruns:
            if srun.poll() is None:
                for child in _children(srun.pid):
                    _signal(child, signal.SIGKILL)
                _signal(srun.pid, signal.SIGKILL)

    def _use_up_numbers(self, count: int) -> None:
        command = ["srun", "--overlap", "--nodes=1", "--ntasks=1", f"--nodelist={self._here}", "--gres=none", "true"]
        # what the job asked of GPUs stands in variables that srun takes for options, and contradicts --gres=none
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ASKED_OF_GPUS)}
        for at in range(0, count, NUMBERS_AT_A_TIME):
            started = [
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
                for _ in range(min(NUMBERS_AT_A_TIME, count - at))
            ]
            for process in started:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(slurm.COMMAND_SECONDS)

    def _start(self, nodes: list[str]) -> "subprocess.Popen[str]":
        count = len(nodes)
        command = [
            "srun", "--unbuffered", "--input=none", "--kill-on-bad-exit=0", f"--nodes={count}", f"--ntasks={count}",
            "--ntasks-per-node=1", f"--nodelist={','.join(nodes)}",
            f"--cpus-per-task={self._cpus}",  # a step does not inherit it from its job
            *self._command,
        ]  # fmt: skip
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace")

    def _listen(self, srun: "subprocess.Popen[str]") -> None:
        assert srun.stderr is not None
        for line in srun.stderr:
            with contextlib.suppress(OSError):  # the job's log is on a full disk
                print(line, end="", flush=True)
            with self._lock:
                if not self._asked:
                    self._note(line.rstrip())

    def _note(self, line: str) -> None:
        if ended := TASK_ENDED.match(line):
            for node in slurm.ask(lambda: slurm.expand_nodes(ended["nodes"]), seconds=0) or [ended["nodes"]]:
                self._ended.faults.setdefault(node, _how(ended["how"]))
                if exited := EXITED.fullmatch(ended["how"]):
                    self._ended.statuses.setdefault(node, int(exited[1]))
        elif failed := NOT_LAUNCHED.match(line):
            self._ended.faults.setdefault(failed["node"] or failed["lost"], failed["how"].strip() or "lost")
        elif complained := NOT_EXECUTED.match(line):
            self._ended.complaints[complained["node"]] = complained["what"]
        elif line.startswith("srun: error: "):
            self._ended.said = line.removeprefix("srun: error: ")

    def _running(self) -> list["subprocess.Popen[str]"]:
        return [srun for srun in self._sruns if srun.poll() is None]

    def _wait_for_a_fault(self) -> None:
        """Until all sruns have ended, or one agent has failed and the others have had time to fail as well."""
        while self._running():
            failed = [srun.returncode for srun in self._sruns if srun.poll()]
            if self._ended.faults or failed:
                deadline = time.monotonic() + SETTLE_SECONDS
                while self._running() and time.monotonic() < deadline:
                    time.sleep(0.1)
                break
            time.sleep(0.1)
        time.sleep(0.1)  # what the last srun has printed is read by another thread
        self._ended.status = next((srun.returncode for srun in self._sruns if srun.poll()), 0)

    def _end_the_others(self) -> None:
        with self._lock:
            self._asked = True
        for number in (
            signal.SIGUSR1,
            signal.SIGTERM,
        ):  # srun passes USR1 on to the agents; TERM makes it kill the step
            for srun in self._running():
                _signal(srun.pid, number)
            deadline = time.monotonic() + END_SECONDS
            while self._running() and time.monotonic() < deadline:
                time.sleep(0.1)
        self.kill()
        self._ended.status = self._ended.status or 1


def _how(words: str) -> str:
    """srun's words for the end of a task, as ours for the end of an agent."""
    if words == "Killed":
        return "its agent was killed (SIGKILL)"
    if exited := EXITED.fullmatch(words):
        return f"its agent exited with status {exited[1]}"
    return f"its agent ended: {words}"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
