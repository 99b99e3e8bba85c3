"""Turns the agents' registrations in a shared folder into one local file that Prometheus watches.

Shared file systems tell nobody about files that other hosts write, so the folder is polled; Prometheus is told at once,
since the file it watches is local. A registration counts for as long as it is *seen to change*, by this process's own
monotonic clock: agents renew theirs every 5 s, whatever they think the time is. The node's clock (`lease`) and the file
server's (mtime) are only believed for files met for the first time, to tell live ones from those that a crash left
behind. A live one that looks old because of a wrong clock is taken in at its next renewal.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge

from harness.monitor.registration import MAX_BYTES, Registration, parse_registration
from harness.run.files import write_atomic

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0
"""A registration not renewed for so long is dropped. Until then a dead node is a target that is down, which alerts."""
SD_FILE = "harness.json"
ERROR_REASONS = ("folder", "unreadable", "invalid", "write")


class Metrics:
    """What the reaper tells about itself."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.targets = Gauge("harness_sd_targets", "Targets that Prometheus is told of", registry=self.registry)
        self.lease = Gauge(
            "harness_sd_lease_timestamp_seconds",
            "When any registration was last seen renewed, by the reaper's clock",
            registry=self.registry,
        )
        self.poll = Gauge(
            "harness_sd_poll_timestamp_seconds", "When the targets folder was last read", registry=self.registry
        )
        self.lapsed = Counter("harness_sd_lapsed", "Targets dropped without a clean exit", registry=self.registry)
        self.errors = Counter(
            "harness_sd_errors",
            "Folders that could not be read, files that are unreadable or no registration, lists not written",
            ["reason"],
            registry=self.registry,
        )
        for reason in ERROR_REASONS:
            self.errors.labels(reason)
        self.poll.set_to_current_time()


@dataclass
class _Entry:
    """What is known of one file. `age` is the time in seconds, spent polling, since it was seen to change."""

    registration: Registration
    mtime_ns: int
    age: float

    @property
    def live(self) -> bool:
        return self.age <= LEASE_SECONDS


class Reaper:
    """Reads `targets_dir` (which need not exist yet) and keeps `sd_dir`/harness.json up to date at each `poll`."""

    def __init__(
        self,
        targets_dir: Path,
        sd_dir: Path,
        *,
        interval: float,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`interval`: seconds between polls. Raises OSError where `sd_dir` cannot be made."""
        self.metrics = Metrics()
        self.sd_file = sd_dir / SD_FILE
        self._targets_dir = targets_dir
        self._interval = interval
        self._monotonic, self._wall = monotonic, wall
        self._entries: dict[str, _Entry] = {}
        self._refused: dict[str, int] = {}  # name -> mtime of the version that was counted as an error
        self._last_poll: float | None = None
        self._folder_failing = False
        self._newest = 0.0
        self._written: str | None = None
        sd_dir.mkdir(parents=True, exist_ok=True)

    def poll(self) -> list[Registration]:
        """Read the folder once, write the list if it changed, and return what Prometheus is told of.

        Never raises for what it finds in the folder. Where the folder itself cannot be read, nothing ages: the file
        system's trouble says nothing about the nodes.
        """
        now = self._monotonic()
        try:
            present = self._scan()
        except OSError as error:
            self._folder_error(error)
            self._last_poll = now
            return self._publish()
        self._folder_failing = False
        # A poll that hung for minutes must not lapse everybody: only time in which renewals could be seen counts.
        elapsed = 0.0 if self._last_poll is None else min(now - self._last_poll, 2 * self._interval)
        self._last_poll = now
        for name in self._entries.keys() - present:
            if not (self._targets_dir / name).exists():  # a listing may miss a file that is being replaced
                self._forget(name)
        for name in self._refused.keys() - present:
            del self._refused[name]
        for name in present:
            self._visit(name, elapsed)
        self.metrics.poll.set(self._wall())
        return self._publish()

    def _scan(self) -> set[str]:
        """Names of the files that may be registrations; temporary ones begin with a dot."""
        try:
            with os.scandir(self._targets_dir) as entries:
                return {e.name for e in entries if e.name.endswith(".json") and not e.name.startswith(".")}
        except FileNotFoundError:
            return set()

    def _visit(self, name: str, elapsed: float) -> None:
        entry = self._entries.get(name)
        was_live = entry is not None and entry.live
        if entry is not None:
            entry.age += elapsed
        entry = self._read(name, entry)
        if was_live and entry is not None and not entry.live:
            log.warning("- %s: no renewal for %.0f s, dropped", entry.registration.title, entry.age)
            self.metrics.lapsed.inc()

    def _read(self, name: str, before: _Entry | None) -> _Entry | None:
        """Take in a file that is new or was renewed. A bad version changes nothing: the last good one ages on.

        Every file is opened at every poll, since NFS clients answer a mere stat from a cache that may be a minute old.
        """
        mtime_ns = 0
        try:
            with open(self._targets_dir / name, "rb", opener=_open_now) as f:
                mtime_ns = os.fstat(f.fileno()).st_mtime_ns
                registration = parse_registration(f.read(MAX_BYTES + 1))
        except FileNotFoundError:  # withdrawn this very moment
            return before
        except (OSError, ValueError) as error:
            if self._refused.get(name) != mtime_ns:
                self._refused[name] = mtime_ns
                self.metrics.errors.labels("invalid" if isinstance(error, ValueError) else "unreadable").inc()
                log.warning("%s is ignored: %s", self._targets_dir / name, error)
            return before
        self._refused.pop(name, None)
        if before is not None and (before.mtime_ns, before.registration) == (mtime_ns, registration):
            return before
        age = 0.0
        if before is None:
            age = max(0.0, self._wall() - max(mtime_ns / 1e9, registration.lease))
        entry = self._entries[name] = _Entry(registration, mtime_ns, age)
        if entry.live:
            self._log_change(before, registration)
            self._newest = max(self._newest, self._wall() - age)
            self.metrics.lease.set(self._newest)
        return entry

    @staticmethod
    def _log_change(before: _Entry | None, registration: Registration) -> None:
        known = before.registration.targets if before is not None and before.live else ()
        if known == registration.targets:
            return
        if registration.targets:
            log.info("+ %s at %s", registration.title, ", ".join(registration.targets))
        else:
            log.info("- %s: withdrawn", registration.title)

    def _forget(self, name: str) -> None:
        entry = self._entries.pop(name)
        if entry.live and entry.registration.targets:
            log.info("- %s: withdrawn", entry.registration.title)

    def _folder_error(self, error: OSError) -> None:
        self.metrics.errors.labels("folder").inc()
        if not self._folder_failing:
            log.warning("cannot read %s, will go on trying with the targets known so far: %s", self._targets_dir, error)
        self._folder_failing = True

    def _publish(self) -> list[Registration]:
        # An address that two files claim belongs to the younger: a port is free again once its agent is dead.
        owner: dict[str, _Entry] = {}
        for entry in self._entries.values():
            for target in entry.registration.targets if entry.live else ():
                if target not in owner or entry.age < owner[target].age:
                    owner[target] = entry
        listed = [
            Registration((target,), entry.registration.labels, entry.registration.lease)
            for target, entry in sorted(owner.items())
        ]
        self.metrics.targets.set(len(listed))
        records = [{"targets": list(one.targets), "labels": one.labels} for one in listed]
        text = json.dumps(records, indent=1) + "\n"
        if text != self._written:
            try:
                write_atomic(self.sd_file, text)
                self._written = text
            except OSError as error:
                self.metrics.errors.labels("write").inc()
                log.error("cannot write %s: %s", self.sd_file, error)
        return listed


def _open_now(path: str, flags: int) -> int:
    """Open without waiting: a FIFO in that folder must not stop everything."""
    return os.open(path, flags | os.O_NONBLOCK)
