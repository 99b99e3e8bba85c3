"""`harness.monitor up`: everything that is installed, on loopback, in the foreground, until told to stop."""

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from harness.monitor import components
from harness.monitor.components import INSTALL, Component, Ports, find_program
from harness.monitor.endpoints import remove_endpoints, write_endpoints
from harness.monitor.ports import LOOPBACK, holder, is_free
from harness.monitor.render import ConfigError
from harness.monitor.supervise import ComponentFailed, Supervisor

CRASHED, REFUSED, NOT_INSTALLED = 1, 2, 3
"""Exit codes beside 0."""
CHECK_SECONDS = 0.5
REMOTE_FILESYSTEMS = ("nfs", "cifs", "smb", "lustre", "beegfs", "gpfs", "wekafs", "ceph", "fuse.", "9p", "afs")


class Refused(Exception):
    """Something stands in the way of starting; the message names it and the fix. `code` is the exit code."""

    def __init__(self, message: str, code: int = REFUSED) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Options:
    """Command line of `up`. `scrape_interval` in seconds."""

    runs_dir: Path
    targets_dir: Path
    data_dir: Path
    ports: Ports
    scrape_interval: float


def up(options: Options) -> int:
    """Run until SIGINT, SIGTERM or SIGHUP, or until a component ends by itself. Returns the exit code."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        with _only_one(options.data_dir):
            plan, missing = _plan(options)
            _require_free(plan)
            _run(options, plan, missing, stop)
    except (Refused, ConfigError) as error:
        print(f"harness.monitor up: {error}", file=sys.stderr)
        return getattr(error, "code", REFUSED)
    except ComponentFailed as error:
        print(f"harness.monitor up: {error}\nEverything else was stopped.", file=sys.stderr)
        return CRASHED
    except OSError as error:  # disk full, a program that cannot be run
        print(f"harness.monitor up: {error.filename or options.data_dir}: {error.strerror}", file=sys.stderr)
        return CRASHED
    return 0


def _plan(options: Options) -> tuple[list[Component], list[str]]:
    """What will run, in order, and the names of what is not installed."""
    programs = {name: find_program(name) for name in INSTALL}
    if programs["prometheus"] is None:
        raise Refused(
            f"prometheus is not installed: {INSTALL['prometheus']} (needs 2.42 or newer). Without it runs still write "
            "metrics.jsonl, and `python -m harness.status` reads that.",
            NOT_INSTALLED,
        )
    data_dir, ports = options.data_dir, options.ports
    plan = [
        components.discovery(options.targets_dir, data_dir, ports),
        components.prometheus(
            programs["prometheus"], data_dir, ports, options.scrape_interval, programs["alertmanager"] is not None
        ),
    ]
    if programs["alertmanager"] is not None:
        plan.append(components.alertmanager(programs["alertmanager"], data_dir, ports))
    if programs["grafana"] is not None:
        plan.append(components.grafana(programs["grafana"], data_dir, ports))
    return plan, [name for name, program in programs.items() if program is None]


def _run(options: Options, plan: list[Component], missing: list[str], stop: threading.Event) -> None:
    if kind := _remote_filesystem(options.data_dir):
        print(f"warning: {options.data_dir} is on {kind}; Prometheus wants a local disk: --data-dir /local/path")
    urls = {component.name: component.url for component in plan}
    with Supervisor() as supervisor:
        for component in plan:
            supervisor.start(component)
        for component in plan:
            supervisor.wait_ready(component, stop.is_set)
            if stop.is_set():
                return
            print(f"{component.name:13} {component.url}  {component.note}".rstrip(), flush=True)
        for name in missing:
            print(f"{name:13} not installed: {INSTALL[name]}", flush=True)
        try:
            write_endpoints(options.runs_dir, urls)
        except OSError as error:
            raise Refused(f"--runs-dir {options.runs_dir} is not writable: {error.strerror}") from None
        print("Ctrl-C stops all of it.", flush=True)
        try:
            while not stop.wait(CHECK_SECONDS):
                supervisor.check()
        finally:
            remove_endpoints(options.runs_dir, urls)
    print("stopped.", flush=True)


@contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    """Hold the data folder for this process. The lock ends with the process, however it ends."""
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = open(data_dir / "lock", "a+")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise Refused(f"--data-dir {data_dir} is not writable: {error.strerror}") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            raise Refused(
                f"--data-dir {data_dir} is in use by {owner}: stop that one, or give another --data-dir and --port"
            ) from None
        lock.truncate(0)
        lock.write(f"pid {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield


def _require_free(plan: list[Component]) -> None:
    for component in plan:
        if is_free(component.port):
            continue
        owner = holder(component.port)
        raise Refused(
            f"port {component.port} on {LOOPBACK}, for {component.name}, is taken"
            f"{f' by {owner}' if owner else ''}: stop that, or choose four free ports in a row with --port FIRST"
        )


def _remote_filesystem(path: Path) -> str | None:
    """Type of the file system under `path` where it is a remote one."""
    best = ("", "")
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if path.resolve().is_relative_to(mount) and len(mount) >= len(best[0]):
                best = (mount, kind)
    return best[1] if best[1].startswith(REMOTE_FILESYSTEMS) else None
