"""The agent's life on one node: join the attempt, start the ranks, watch them, export metrics, and leave word at the end."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import FrameType

from harness.agent.boards import make_boards_folder
from harness.agent.data import NodeData
from harness.agent.hang import HangWatch
from harness.agent.join import join_attempt
from harness.agent.metrics import NodeMetrics
from harness.config.layout import ranks_per_node
from harness.config.schema import RootConfig
from harness.observe.board import Board, RankState
from harness.recovery.start import Refused, begin
from harness.run.attempt import Attempt, Outcome, log_path, write_end, write_outcome
from harness.run.exit_codes import CONFIG, MEANING, NONFINITE, NOT_RETRIED, OK
from harness.run.files import keep_trying
from harness.run.folder import RunFolder, RunFolderError
from harness.run.journal import lines_waiting
from harness.run.node import Node, this_node
from harness.system.output import keep_printing

WATCH_SECONDS = 0.25
LEDGER_SECONDS = 5.0
LAST_WORD_SECONDS = 600.0
"""How long an agent whose disk is full tries to record how the attempt ended."""
TERMINATE_SECONDS = 2.0
"""How long the launcher gets to end after an error of ours. Where Slurm ends the job, nothing: there is nothing to save, and
the sooner the job is over the sooner it starts again."""


def run_agent(run_path: str) -> int:
    """Run this node's part of the run's job to its end; returns the exit code of the task."""
    keep_printing()
    # submitit's handlers go, where it is our parent: they would requeue from here, and keep SIGTERM from ending us
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    run = RunFolder(Path(run_path))
    try:
        config = run.load_config()
    except RunFolderError as error:
        print(error, flush=True)
        return CONFIG
    node = this_node()
    if not node.on_slurm:  # there the batch script has done it, once for all nodes
        try:
            begin(run, config, node)
        except Refused as refusal:
            print(refusal, flush=True)
            return refusal.exit_code
    attempt = join_attempt(run, node)
    _write_to(log_path(run, attempt.number, node.name))
    return Agent(config, run, attempt, node).run()


def _write_to(log: Path) -> None:
    """Send all that this process and its children print to the attempt's log of this node."""
    try:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    except OSError as error:
        print(f"can't open {log}: {error}; everything is printed here instead", flush=True)
        return
    print(f"the log goes on in {log}", flush=True)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


class Agent:
    """Watches one node's ranks from their start to the end of the attempt."""

    def __init__(self, config: RootConfig, run: RunFolder, attempt: Attempt, node: Node) -> None:
        self._config, self._run, self._attempt, self._node = config, run, attempt, node
        self._ledger = run.ledger(attempt.number, node.name)
        self._boards_dir = make_boards_folder(run, node, ranks_per_node(config))
        self._restarts = Counter[str]()
        self._hang = HangWatch(config.cluster.hang_seconds, config.cluster.planned_hang_seconds)
        self._stop = threading.Event()
        self._terminated = False

    def run(self) -> int:
        """Returns 0 when the run is finished or has stopped on request, else the code that ended it."""
        signal.signal(signal.SIGUSR2, self._on_stop)
        signal.signal(signal.SIGTERM, self._on_terminate)
        signal.signal(signal.SIGUSR1, self._on_terminate)  # from the batch script: another node's agent has failed
        self._count_restarts()
        metrics = NodeMetrics(self._config, self._run, self._attempt, self._node, self._boards_dir, self._restarts)
        self._ledger.write("agent_start", pid=os.getpid(), metrics=metrics.url)
        data = NodeData(self._config, self._run, self._attempt, self._node)
        launcher, outcome = None, None
        try:
            outcome = self._prepare(data)
            if outcome is None:
                launcher = self._start_launcher()
                code = self._watch(launcher, data)
            else:
                code = outcome.exit_code
        finally:
            if launcher is not None:
                _end(launcher, 0.0 if self._terminated else TERMINATE_SECONDS)
            outcome = outcome or self._outcome(launcher.returncode if launcher else None)
            data.close()
            self._leave_word(outcome)
            print(f"attempt {self._attempt.number} on {self._node.name}: {outcome.state}; {outcome.why}", flush=True)
            metrics.close()
            shutil.rmtree(self._boards_dir, ignore_errors=True)
        return code

    def _leave_word(self, outcome: Outcome) -> None:
        """Record how the attempt ended. On a full disk this waits for room: without a word the node counts as lost."""
        number, node = self._attempt.number, self._node

        def write() -> None:
            write_end(self._run, number, node.name, outcome.state, outcome.reason, outcome.why)
            if node.is_head:
                write_outcome(self._run, number, outcome)

        if node.is_head:
            facts = {"state": outcome.state, "reason": outcome.reason, "why": outcome.why}
            self._ledger.write("attempt_end", step=self._step(), **facts)
        try:
            what = f"how the attempt ended to {self._run.attempt_dir(number)}"
            keep_trying(write, what, LAST_WORD_SECONDS, lambda: self._terminated)
        except OSError as error:
            print(f"could not write {what}: {error}", flush=True)
        if not self._ledger.catch_up():
            print(
                f"{lines_waiting(self._run.path)} lines of {self._run.path} could not be written and are lost",
                flush=True,
            )

    def _prepare(self, data: NodeData) -> Outcome | None:
        """How the attempt ends where it does so before ranks are started; None: start them."""
        unready = data.prepare(lambda: self._terminated or self._stop.is_set())
        if self._terminated:
            code = 128 + signal.SIGTERM
            return Outcome("terminated", "", "the job was asked to end", final=False, exit_code=code)
        if self._stop.is_set():
            self._ledger.write("stop_requested", step=self._step(), why="the time limit is near")
            return Outcome("stopped", "timeout", "the time limit came before the data was staged", final=False)
        return Outcome("failed", "storage", unready.why, final=False, exit_code=1) if unready else None

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        self._terminated = True

    def _start_launcher(self) -> "subprocess.Popen[bytes]":
        attempt, node = self._attempt, self._node
        command = [
            sys.executable, "-u", "-m", "harness.agent.launcher", str(self._run.path),
            "--attempt", str(attempt.number), "--node", node.name, "--address", node.address,
            "--nodes", str(len(attempt.nodes)), "--ranks", str(ranks_per_node(self._config)),
            "--rendezvous", f"{attempt.rendezvous_host}:{attempt.rendezvous_port}", "--boards", str(self._boards_dir),
            *(["--head"] if node.is_head else []),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "HARNESS_BOARD_DIR": str(self._boards_dir),
            "HARNESS_ATTEMPT": str(attempt.number),
            "HARNESS_NODE": node.name,
            # the same number on every start, or the sums of a restart would differ in their last bit
            "OMP_NUM_THREADS": os.environ.get(
                "OMP_NUM_THREADS", "1" if not self._config.cluster.gpus_per_node else "4"
            ),
        }
        return subprocess.Popen(command, env=environment, preexec_fn=_ignore_requests)

    def _watch(self, launcher: "subprocess.Popen[bytes]", data: NodeData) -> int:
        """Until the launcher ends or we are told to. Returns its exit code, or 143 for SIGTERM."""
        counted = time.monotonic()
        asked = False
        while True:
            try:
                return launcher.wait(WATCH_SECONDS)
            except subprocess.TimeoutExpired:
                pass
            if self._terminated:
                return 128 + signal.SIGTERM
            data.poll()
            boards = self._boards()
            if self._stop.is_set():
                for board in boards:  # again each time: a rank that starts late must hear it too
                    board.set("stop_request", 1.0)
                if not asked:
                    self._ledger.write("stop_requested", step=self._step(), why="the time limit is near")
                    asked = True
            if self._hang.hung(boards):
                self._end_hang(boards)
            if time.monotonic() - counted > LEDGER_SECONDS:
                self._ledger.catch_up()
                self._count_restarts()
                counted = time.monotonic()

    def _end_hang(self, boards: list[Board]) -> None:
        why = self._hang.why(boards)
        print(f"{why}: stacks of all ranks follow", flush=True)
        self._hang.print_stacks(boards)
        if not self._hang.hung(boards):  # slow, then, and not hung
            print("the ranks have got further meanwhile: they are left alone", flush=True)
            return
        print("the ranks still hang: they are restarted", flush=True)
        self._ledger.write("hang", step=self._step(), why=why)
        with contextlib.suppress(OSError):  # then the restart is called a crash
            (self._boards_dir / "hang").touch()
        self._hang.kill(boards)

    def _count_restarts(self) -> None:
        try:
            events = self._run.events()
        except OSError:  # a mount that is away: the counts stay as they were
            return
        counts = Counter(str(event.get("reason", "unknown")) for event in events if event.get("event") == "restart")
        self._restarts.update({reason: count - self._restarts[reason] for reason, count in counts.items()})

    def _boards(self) -> list[Board]:
        boards = []
        for path in sorted(self._boards_dir.glob("rank-*.board")):
            try:
                boards.append(Board.open_for_read(path))
            except (OSError, ValueError):
                continue  # a rank is just making it
        return boards

    def _step(self) -> int:
        return max((int(board.get("step")) for board in self._boards()), default=0)

    def _outcome(self, launcher_code: int | None) -> Outcome:
        states = {int(board.get("state")) for board in self._boards()}
        if launcher_code == OK and states == {int(RankState.finished)}:
            return Outcome("finished", "", self._why_finished(), final=True)
        if launcher_code == OK and states == {int(RankState.stopped)}:
            return Outcome("stopped", "timeout", "saved and stopped before the time limit", final=False)
        if self._terminated:
            return Outcome("terminated", "", "the job was asked to end", final=False)
        code = launcher_code if launcher_code is not None else 1
        reason = "nonfinite" if code == NONFINITE else "unknown"
        why = MEANING.get(code, f"the launcher ended with status {code}")
        return Outcome("failed", reason, why, final=code in NOT_RETRIED, exit_code=code)

    def _why_finished(self) -> str:
        train, step = self._config.train, self._step()
        if step >= train.steps:
            return f"all {train.steps} steps are done"
        return (
            f"stopped early after step {step} of {train.steps}: {train.early_stop_evals} validations in a row without a new "
            "low (train.early_stop_evals)"
        )


def _ignore_requests() -> None:
    """From before a child's first instruction: Slurm's warnings go to every process of the job, and the agent acts on them."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def _end(launcher: "subprocess.Popen[bytes]", patience: float) -> None:
    """Give the launcher `patience` seconds to end its ranks. When it is killed, the kernel kills them (PDEATHSIG)."""
    if launcher.poll() is not None:
        return
    launcher.terminate()
    try:
        launcher.wait(patience)
    except subprocess.TimeoutExpired:
        launcher.kill()
        launcher.wait()
