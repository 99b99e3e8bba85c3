"""The data on one node: can it be read here, its stager, and waiting until every node has its copies."""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness.config.schema import RootConfig, StageWhen
from harness.data.reach import unreachable
from harness.data.stage_status import StageState, StageStatus, read_status, status_path
from harness.run.attempt import Attempt
from harness.run.exit_codes import CONFIG, OK
from harness.run.files import write_json
from harness.run.folder import RunFolder
from harness.run.node import Node
from harness.run.parent import die_with
from harness.run.records import read_sound

REACH_SECONDS = 60.0
OTHERS_SECONDS = 10.0
"""How long a node that can't read the data waits to hear whether others can: then the fault is its own."""
POLL_SECONDS = 0.5
STOP_SECONDS = 5.0
RESTARTS = 3
"""Times that a stager which was killed is started again."""


@dataclass(frozen=True)
class Unready:
    """Why this attempt can't train: the data is not there."""

    why: str


@dataclass(frozen=True)
class _Record:
    """What a node has said of its data."""

    reads: bool
    """It can read it."""
    problem: str | None
    """What is wrong with it; empty: nothing, it has all that it needs; None: it has not come so far."""


@dataclass(frozen=True)
class _Said:
    """NODE.data.json: see `_Record`."""

    problem: str | None


class NodeData:
    """From construction to `close`: looks at the sources and runs the node's stager, which tells the ledger how it goes.

    RUN/attempts/003/NODE.data.json says how the node stands, so that the nodes can wait for each other.
    """

    def __init__(self, config: RootConfig, run: RunFolder, attempt: Attempt, node: Node) -> None:
        self._config, self._run, self._attempt, self._node = config, run, attempt, node
        self._ledger = run.ledger(attempt.number, node.name)
        self._stager: subprocess.Popen[bytes] | None = None
        self._restarts = 0
        self._told = False
        self._said = StageStatus()
        self._closed = threading.Event()
        self._ended: tuple[int, float] | None = None
        self._unsaid: dict[str, Any] | None = None
        """What could not be written so far for the other nodes to read."""
        self._mute = False

    @property
    def _stages(self) -> bool:
        return self._config.data.stage_to is not None

    def prepare(self, ended: Callable[[], bool]) -> Unready | None:
        """Everything that must be so before ranks start. None: go on, or `ended()` has become true meanwhile."""
        if self._stages:
            self._start()
        if unready := self._reach():
            return unready
        if not self._stages or self._config.data.stage_when is not StageWhen.before:
            return None
        while not (status := self.poll()).over and not ended():
            time.sleep(POLL_SECONDS)
        if ended():
            return None
        print(f"data on {self._node.name}: {status.state}: {status.text}", flush=True)
        failed = status.state in (StageState.failed, StageState.stopped)
        why = f"node {self._node.name}: staging {status.state}: {'; '.join(status.problems)}" if failed else ""
        self._report(why)
        return Unready(why) if failed else self._wait_for_others(ended)

    def poll(self) -> StageStatus:
        """How staging stands; to be called now and then, for it restarts a stager that was killed."""
        self._say()
        if self._stager is None:
            return StageStatus(state=StageState.done)
        code = self._stager.poll()
        status = self._said if self._said.pid == self._stager.pid else StageStatus()  # not that of an earlier stager
        if code is not None and not status.over and time.monotonic() - self._ended_at(code) > 4 * POLL_SECONDS:
            if code not in (OK, 1, CONFIG) and self._restarts < RESTARTS:
                self._restarts += 1
                self._ended = None
                print(f"the stager ended with status {code}: starting it again", flush=True)
                self._start()
                return status
            status.state = StageState.failed
            status.problems = [f"the stager ended with status {code} (see the log of {self._node.name})"]
            if code != CONFIG and not self._told:  # it could not say so itself
                self._told = True
                self._ledger.write("stage_failed", why=status.problems[0], bytes=status.bytes_copied)
        return status

    def close(self) -> None:
        """End the stager; what it has half copied is there for the next one."""
        self._closed.set()
        stager = self._stager
        if stager is None or stager.poll() is not None:
            return
        stager.terminate()
        try:
            stager.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            stager.kill()  # one that hangs in a read dies when that returns

    def _start(self) -> None:
        data, node = self._config.data, self._node
        command = [sys.executable, "-u", "-m", "harness.data", "stage", "--run", str(self._run.path)]
        if data.stage_from_peers and len(node.nodes) > 1:
            command += ["--serve", node.address]
        if not self._restarts:
            threading.Thread(target=self._listen, name="stage-status", daemon=True).start()
        environment = {**os.environ, "HARNESS_NODE": node.name, "HARNESS_ATTEMPT": str(self._attempt.number)}
        self._stager = subprocess.Popen(command, env=environment, preexec_fn=partial(die_with, os.getpid()))

    def _ended_at(self, code: int) -> float:
        """When we first saw that the stager has ended: its last status is read a little later."""
        if self._ended is None or self._ended[0] != code:
            self._ended = (code, time.monotonic())
        return self._ended[1]

    def _listen(self) -> None:
        """In a thread of its own: a local disk that hangs must not hang the agent."""
        assert self._config.data.stage_to is not None
        path = status_path(self._config.data.stage_to, self._config.run.name, self._node.name)
        while not self._closed.wait(POLL_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                self._said = read_status(path) or self._said

    def _reach(self) -> Unready | None:
        """Names this node and the path where something can't be read here; keeps the node out where others can read it."""
        broken, silent = unreachable(self._config.data.sources, REACH_SECONDS)
        for sentence in silent:  # slow is not broken: the ranks will wait, and the alerts tell
            print(f"node {self._node.name}: {sentence}", flush=True)
            self._ledger.write("data_slow", why=sentence)
        if not broken:
            self._report(None)
            return None
        why = f"node {self._node.name}: {'; '.join(broken)}"
        print(why, flush=True)
        self._ledger.write("data_unreadable", why=why)
        self._report(why)
        deadline = time.monotonic() + OTHERS_SECONDS
        others = [name for name in self._attempt.nodes if name != self._node.name]
        while others and time.monotonic() < deadline:
            if any(self._record(name).reads for name in others):
                if self._exclude(f"can't read the data: {'; '.join(broken)}"):
                    self._ledger.write("node_excluded", lost=self._node.name, why=why)
                break
            time.sleep(POLL_SECONDS)
        return Unready(why)

    def _exclude(self, why: str) -> bool:
        """Keep this node out of the run; whether that is new and could be written down."""
        try:
            return self._run.exclude_node(self._node.name, why)
        except OSError as error:
            print(f"could not exclude {self._node.name}: {error}", flush=True)
            return False

    def _wait_for_others(self, ended: Callable[[], bool]) -> Unready | None:
        """Until every node has its copies: ranks that start alone would wait for the others' and give up."""
        waiting = list(self._attempt.nodes)
        while waiting and not ended():
            for name in list(waiting):
                record = self._record(name)
                if record.problem:
                    return Unready(record.problem)
                if record.problem == "":
                    waiting.remove(name)
            if waiting:
                self.poll()
                time.sleep(POLL_SECONDS)
        return None

    def _path(self, node: str) -> Path:
        return self._run.attempt_dir(self._attempt.number) / f"{node}.data.json"

    def _report(self, problem: str | None) -> None:
        """None: the data can be read here, but is not all copied yet."""
        self._unsaid = {"time": time.time(), "problem": problem}
        self._say()

    def _say(self) -> None:
        """Write what the other nodes have to know; on a full disk with the next `poll`."""
        if self._unsaid is None:
            return
        try:
            write_json(self._path(self._node.name), self._unsaid)
        except OSError as error:
            if not self._mute:
                print(f"could not write {self._path(self._node.name)}: {error}; trying again", flush=True)
            self._mute = True
        else:
            self._unsaid, self._mute = None, False

    def _record(self, node: str) -> _Record:
        said = read_sound(self._path(node), _Said)
        return _Record(False, None) if said is None else _Record(not said.problem, said.problem)
