"""Runs components as child processes that never outlive this one, and notices when one ends."""

import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial

from harness.monitor.components import Component
from harness.run.parent import die_with

READY_SECONDS = 120.0
"""Prometheus replays its write-ahead log before it is ready, which takes a while after a busy day."""
STOP_SECONDS = 10.0
POLL_SECONDS = 0.2

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ComponentFailed(Exception):
    """A component ended by itself or never became ready; the message has the last lines of its log."""


class Supervisor:
    """Started components. Use as a context manager: leaving it stops them all, whatever happened."""

    def __init__(self) -> None:
        self._running: list[tuple[Component, subprocess.Popen[bytes]]] = []

    def __enter__(self) -> "Supervisor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(self, component: Component) -> None:
        """Start it in a session of its own (Ctrl-C reaches this process alone), with its output in its log."""
        component.log.parent.mkdir(parents=True, exist_ok=True)
        with open(component.log, "wb") as log:
            process = subprocess.Popen(
                component.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **component.environment},
                start_new_session=True,
                preexec_fn=partial(die_with, os.getpid(), signal.SIGTERM),
            )
        self._running.append((component, process))

    def wait_ready(self, component: Component, stopped: Callable[[], bool]) -> None:
        """Return once it answers, or `stopped()`. Raises ComponentFailed after READY_SECONDS, or as soon as any ends."""
        deadline = time.monotonic() + READY_SECONDS
        while not stopped():
            self.check()
            if _answers(component.url + component.ready_path):
                return
            if time.monotonic() > deadline:
                raise ComponentFailed(f"{component.name} is not ready after {READY_SECONDS:.0f} s\n{_tail(component)}")
            time.sleep(POLL_SECONDS)

    def check(self) -> None:
        """Raises ComponentFailed if any component has ended."""
        for component, process in self._running:
            if process.poll() is not None:
                how = f"exited with {process.returncode}"
                if process.returncode < 0:
                    how = f"was killed by {signal.Signals(-process.returncode).name}"
                raise ComponentFailed(f"{component.name} {how}\n{_tail(component)}")

    def stop(self) -> None:
        """SIGTERM to all, SIGKILL to those left after STOP_SECONDS; every process group is gone afterwards."""
        for _, process in self._running:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        for _, process in self._running:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                _signal_group(process, signal.SIGKILL)
                process.wait()
        self._running.clear()


def last_lines(text: str, count: int = 8) -> Sequence[str]:
    return text.rstrip().splitlines()[-count:]


def _tail(component: Component) -> str:
    text = component.log.read_text(errors="replace")
    return "\n".join([f"  {component.log}:", *(f"  | {line}" for line in last_lines(text))])


def _signal_group(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    if process.poll() is None:
        os.killpg(process.pid, number)


def _answers(url: str) -> bool:
    try:
        with _opener.open(url, timeout=1.0) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False
