"""Programs under measurement: started in a process group of their own, watched, ended for good, and their logs."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

POLL_SECONDS = 0.25
TERMINATE_SECONDS = 10.0
TAIL_LINES = 40
MESSAGE = 200
"""Characters of a reason."""
OUT_OF_MEMORY = "out of memory"
_ERROR = re.compile(r"(?:^|[\s:])((?:[A-Za-z_]+\.)*[A-Z][A-Za-z]*(?:Error|Exception|Interrupt|Exit): .*)")
_TELLS_NOTHING = ("ChildFailedError", "SignalException")
"""torchrun's own exceptions: they only say that some rank failed."""


def repository() -> Path:
    """Root of the checkout."""
    return Path(__file__).resolve().parents[1]


def start(command: list[str], log: Path, env: Mapping[str, str] | None = None) -> "subprocess.Popen[bytes]":
    """Start `command` in the checkout, its output in `log`, as leader of a process group of its own.

    Not of a session of its own: whoever ends ours ends it too."""
    environment = {**os.environ, **(env or {})}
    path = [str(repository()), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    environment["PYTHONPATH"] = os.pathsep.join(entry for entry in path if entry)
    with open(log, "ab") as output:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=repository(),
            env=environment, process_group=0,
        )  # fmt: skip


def poll(look: Callable[[], T | None], deadline: float) -> T | None:
    """What `look` gives once it is not None; None at `deadline` (monotonic)."""
    while (found := look()) is None and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    return found


async def watch(look: Callable[[], T | None], deadline: float) -> T | None:
    """`poll` that lets other programs be watched meanwhile."""
    while (found := look()) is None and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
    return found


def run_watched(watching: Coroutine[Any, Any, T]) -> T:
    """What `watching` returns. SIGTERM cancels it, so that it ends what it has started, and then exits."""

    async def cancelled_by_sigterm() -> T:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await watching

    try:
        return asyncio.run(cancelled_by_sigterm())
    except asyncio.CancelledError:
        sys.exit(128 + signal.SIGTERM)


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End the whole group of `process`, also after its leader is gone: SIGTERM, and SIGKILL for what stays."""
    _signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + TERMINATE_SECONDS
    poll(lambda: None if alive(process) else True, deadline)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def alive(process: "subprocess.Popen[bytes]") -> bool:
    """Whether `process`, or anything that it started and left in its group, still runs."""
    return process.poll() is None or bool(_members(process.pid))


def _signal_group(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


def _members(group: int) -> list[int]:
    """Processes of the group that still run; zombies that nobody has collected are none."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue  # it has just gone
        if int(own) == group and state != "Z":
            found.append(int(entry.name))
    return found


def tail(log: Path) -> list[str]:
    """Last lines of the log."""
    try:
        return log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    except OSError:
        return []


def refusal(log: Path) -> str:
    """Why `harness.launch` did not launch: its problems, or what else it said."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    problems = [line.removeprefix("  - ") for line in lines if line.startswith("  - ")]
    return "; ".join(problems)[:MESSAGE] if problems else why_failed(log)


def why_failed(log: Path) -> str:
    """The reason of a failure in a few words, from what the program printed."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return "it left no log"
    if re.search(r"OutOfMemoryError|CUDA out of memory|CUBLAS_STATUS_ALLOC_FAILED", text):
        return OUT_OF_MEMORY
    errors = [found.group(1) for line in text.splitlines() if (found := _ERROR.search(line))]
    told = [error for error in errors if not any(name in error for name in _TELLS_NOTHING)]
    lines = [line for line in text.splitlines() if line.strip()]
    return (told or errors or lines or ["it printed nothing"])[-1].strip()[:MESSAGE]
