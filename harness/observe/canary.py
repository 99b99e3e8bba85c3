"""Canary reads: tells a cold data set from a slow file system, by small timed reads of each mount."""

import contextlib
import errno
import json
import logging
import os
import random
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

log = logging.getLogger(__name__)

PROBE_FILE = Path(__file__).with_name("canary_probe.py")
READ_ONLY_ERRNOS = (errno.EROFS, errno.EACCES, errno.EPERM)
LABELS = ["mount", "kind"]


@dataclass(frozen=True)
class CanaryMount:
    """What to read on one mount.

    `hot_folder`: a writable folder of ours on that mount for the hot probe's small file; None: no hot probe.
    `cold_files`: data files on that mount, of which each cold probe reads 4 KiB of a random one; empty: no cold probe.
    """

    mount: str
    hot_folder: Path | None = None
    cold_files: Sequence[Path] = ()


@dataclass
class _Probe:
    """One (mount, kind): the files it may read, and how it went."""

    mount: str
    kind: str
    paths: Sequence[Path]
    sent_at: float | None = None
    """Monotonic time of the request that is not answered yet."""
    seconds: float | None = None
    last_run: float = 0.0
    timeouts: int = 0
    errors: int = 0
    failing: bool = False
    off: bool = False

    @property
    def id(self) -> str:
        return f"{self.kind} {self.mount}"


class CanaryCollector:
    """One round of all probes per call; for `Background`, every `monitor.canary_seconds`.

    The reads are made by a child process, a thread per mount and kind, and a probe that is not back holds up no other. A
    probe counts as timed out in every round that finds it out for longer than `timeout_seconds`; its
    harness_canary_read_seconds is then the time that it has been out, which grows, so a stuck mount never looks fast.
    """

    name = "canary"

    def __init__(self, mounts: Sequence[CanaryMount], node: str, timeout_seconds: float = 5.0) -> None:
        self._timeout = timeout_seconds
        self._probes = {probe.id: probe for mount in mounts for probe in _probes(mount, node)}
        self._child: subprocess.Popen[bytes] | None = None
        self._half_line = b""

    def collect(self) -> Iterable[Metric]:
        """Raises RuntimeError where the child has died; the next call starts another."""
        child = self._running_child()
        self._take_answers(child, wait_seconds=0.0)
        sent = [probe for probe in self._probes.values() if probe.sent_at is None and not probe.off]
        for probe in sent:
            self._send(child, probe)
        deadline = time.monotonic() + self._timeout
        while any(probe.sent_at is not None for probe in sent) and (left := deadline - time.monotonic()) > 0:
            self._take_answers(child, left)
        return self._families(time.monotonic())

    def close(self) -> None:
        """End the child, which removes its hot files. One that hangs in the kernel is left to die when it returns."""
        if self._child is None:
            return
        child, self._child = self._child, None
        assert child.stdin is not None and child.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            child.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=2.0)
        child.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
        child.stdout.close()

    @property
    def child_pid(self) -> int | None:
        """Process id of the child; None before the first round."""
        return None if self._child is None else self._child.pid

    def _running_child(self) -> "subprocess.Popen[bytes]":
        if self._child is None:
            command = [sys.executable, "-I", "-S", str(PROBE_FILE), str(os.getpid())]
            self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
            self._half_line = b""
            for probe in self._probes.values():
                probe.sent_at = None
        return self._child

    def _bury(self, child: "subprocess.Popen[bytes]") -> NoReturn:
        self.close()
        raise RuntimeError(f"the canary process ended with {child.returncode}; starting another")

    def _send(self, child: "subprocess.Popen[bytes]", probe: _Probe) -> None:
        request = {"id": probe.id, "kind": probe.kind, "path": str(random.choice(probe.paths))}
        assert child.stdin is not None
        probe.sent_at = time.monotonic()
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError:
            self._bury(child)

    def _take_answers(self, child: "subprocess.Popen[bytes]", wait_seconds: float) -> None:
        """Wait at most so long for something from the child, and take all that is there."""
        assert child.stdout is not None
        if not select.select([child.stdout], [], [], wait_seconds)[0]:
            return
        block = os.read(child.stdout.fileno(), 65536)
        if not block:
            self._bury(child)
        *lines, self._half_line = (self._half_line + block).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            probe = self._probes[answer["id"]]
            probe.sent_at = None
            if "seconds" in answer:
                probe.seconds, probe.last_run, probe.failing = answer["seconds"], time.time(), False
            else:
                self._failed(probe, answer["errno"], answer["error"])

    def _failed(self, probe: _Probe, number: int, error: str) -> None:
        probe.seconds = None
        if probe.kind == "hot" and number in READ_ONLY_ERRNOS:
            log.info("no hot canary on %s: %s", probe.mount, error)
            probe.off = True
            return
        if not probe.failing:
            log.warning("the %s canary on %s failed: %s", probe.kind, probe.mount, error)
        probe.failing = True
        probe.errors += 1

    def _families(self, now: float) -> Iterable[Metric]:
        seconds = GaugeMetricFamily(
            "harness_canary_read_seconds", "Last canary read, or the time that it has been out", labels=LABELS
        )
        last_run = GaugeMetricFamily(
            "harness_canary_last_run_timestamp_seconds", "Unix time of the last read that came back", labels=LABELS
        )
        timeouts = CounterMetricFamily("harness_canary_timeouts_total", "Rounds without an answer", labels=LABELS)
        errors = CounterMetricFamily("harness_canary_errors_total", "Reads that failed", labels=LABELS)
        for probe in self._probes.values():
            if probe.off:
                continue
            label = [probe.mount, probe.kind]
            out = 0.0 if probe.sent_at is None else now - probe.sent_at
            if out >= self._timeout:
                probe.timeouts += 1
                seconds.add_metric(label, out)
            elif probe.seconds is not None:
                seconds.add_metric(label, probe.seconds)
            if probe.last_run:
                last_run.add_metric(label, probe.last_run)
            timeouts.add_metric(label, probe.timeouts)
            errors.add_metric(label, probe.errors)
        return seconds, last_run, timeouts, errors


def _probes(mount: CanaryMount, node: str) -> Iterable[_Probe]:
    cold, folders = list(mount.cold_files), [] if mount.hot_folder is None else [mount.hot_folder]
    if folders:
        yield _Probe(mount.mount, "hot", [folders[0] / f".harness-canary-{node}"])
    if cold:
        yield _Probe(mount.mount, "cold", cold)
    if cold or folders:
        yield _Probe(mount.mount, "meta", cold or folders)
