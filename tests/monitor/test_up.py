"""`python -m harness.monitor up` as a user runs it, with the real Prometheus and Alertmanager."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from prometheus_client import CollectorRegistry, Counter, start_http_server

from harness.monitor.client import Prometheus, PrometheusUnavailable, connect
from harness.monitor.endpoints import endpoints_path
from harness.monitor.ports import free_row
from harness.observe.targets import TargetRegistration
from tests.conftest import require
from tests.waiting import wait_for

pytestmark = pytest.mark.prometheus

FAKE_GRAFANA = """#!{python}
import http.server, os
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/health" else 404)
        self.end_headers()
address = (os.environ["GF_SERVER_HTTP_ADDR"], int(os.environ["GF_SERVER_HTTP_PORT"]))
print(open(os.environ["GF_PATHS_PROVISIONING"] + "/datasources/prometheus.yml").read(), flush=True)
http.server.HTTPServer(address, Health).serve_forever()
"""


@dataclass
class Monitor:
    """A running `up`."""

    process: "subprocess.Popen[str]"
    runs_dir: Path
    port: int
    output: Path

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def wait_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.output.read_text()
            return "Ctrl-C" in self.output.read_text()

        wait_for(ready, "monitor up is ready")


def command(runs_dir: Path, port: int, *more: str) -> list[str]:
    arguments = ["--runs-dir", str(runs_dir), "--port", str(port), "--scrape-interval", "500ms", *more]
    return [sys.executable, "-m", "harness.monitor", "up", *arguments]


def start(tmp_path: Path, *more: str, path: str | None = None) -> Monitor:
    require("prometheus")
    port, output = free_row(4), tmp_path / "output"
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    with open(output, "w") as f:
        process = subprocess.Popen(
            command(tmp_path / "runs", port, *more), stdout=f, stderr=f, text=True, env=environment
        )
    return Monitor(process, tmp_path / "runs", port, output)


def descendants(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Monitor]:
    running = start(tmp_path)
    try:
        running.wait_ready()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture
def exporter() -> Iterator[tuple[int, Counter]]:
    """Port and token counter of something that answers as an agent does."""
    registry = CollectorRegistry()
    tokens = Counter("harness_train_tokens", "Tokens", registry=registry)
    server, thread = start_http_server(0, "127.0.0.1", registry)
    yield server.server_port, tokens
    server.shutdown()
    server.server_close()
    thread.join(5)


def register(monitor: Monitor, port: int) -> TargetRegistration:
    return TargetRegistration(
        monitor.runs_dir / ".targets", ("127.0.0.1", port), run="smol", attempt=0, node="n07", renew_seconds=1.0
    )


def value(prometheus: Prometheus, expr: str) -> float | None:
    samples = prometheus.query(expr)
    return samples[0].value if samples else None


def test_from_registration_to_alert_to_clean_exit(monitor: Monitor, exporter: tuple[int, Counter]) -> None:
    port, tokens = exporter
    prometheus = connect(monitor.runs_dir)
    assert prometheus.url == f"http://127.0.0.1:{monitor.port}"

    registration = register(monitor, port)
    wait_for(lambda: value(prometheus, 'up{job="harness", run="smol"}') == 1, "the agent is scraped")
    (target,) = prometheus.targets("smol")
    assert target.health == "up"
    expected = {"run": "smol", "attempt": "0", "node": "n07", "job": "harness", "instance": f"127.0.0.1:{port}"}
    assert target.labels == expected  # an empty slurm_job_id is no label

    tokens.inc(1234)
    wait_for(lambda: value(prometheus, 'harness_train_tokens_total{run="smol"}') == 1234, "a value arrives")
    assert value(prometheus, "harness_sd_targets") == 1

    wait_for(
        lambda: any(alert.name == "HarnessWatchdog" and alert.firing for alert in prometheus.alerts()),
        "the watchdog fires",
    )
    status = [sys.executable, "-m", "harness.monitor", "status", "--runs-dir", str(monitor.runs_dir)]
    shown = subprocess.run(status, capture_output=True, text=True, timeout=30)
    assert shown.returncode == 0 and "1 up, 0 not" in shown.stdout and "silent" not in shown.stdout

    registration.close()
    wait_for(lambda: prometheus.targets("smol") == [], "the target is gone after a clean exit")
    assert value(prometheus, "harness_sd_lapsed_total") == 0


def test_a_lapsed_lease_takes_the_target_away(monitor: Monitor) -> None:
    """The folder holds what a node left that was last heard of 30 s ago; nobody listens there."""
    prometheus = connect(monitor.runs_dir)
    folder = monitor.runs_dir / ".targets"
    folder.mkdir(parents=True)
    labels = {"run": "smol", "attempt": "0", "slurm_job_id": "7", "node": "n09"}
    heard = time.time() - 30
    temporary = folder / "temporary"
    temporary.write_text(json.dumps({"targets": ["127.0.0.1:1"], "labels": labels, "lease": heard}))
    os.utime(temporary, (heard, heard))
    temporary.rename(folder / "smol.0.n09.json")
    wait_for(lambda: value(prometheus, 'up{job="harness", node="n09"}') == 0, "a dead node is a target that is down")
    wait_for(lambda: prometheus.targets("smol") == [], "its lease lapses")
    wait_for(lambda: value(prometheus, "harness_sd_lapsed_total") == 1, "the reaper says so")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_leaves_nothing_behind(monitor: Monitor, number: signal.Signals) -> None:
    children = descendants(monitor.process)
    assert {"prometheus"} <= {child.name() for child in children}
    assert monitor.stop(number) == 0
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    assert not endpoints_path(monitor.runs_dir).exists()
    with pytest.raises(PrometheusUnavailable):
        Prometheus(f"http://127.0.0.1:{monitor.port}").alerts()


def test_even_a_kill_leaves_nothing_behind(monitor: Monitor) -> None:
    children = descendants(monitor.process)
    monitor.stop(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]


def test_a_component_that_ends_stops_everything(monitor: Monitor) -> None:
    children = descendants(monitor.process)
    next(child for child in children if child.name() == "prometheus").kill()
    assert monitor.process.wait(30) == 1
    assert "prometheus was killed by SIGKILL" in monitor.output.read_text()
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


def test_one_data_dir_has_one_monitor(monitor: Monitor) -> None:
    second = subprocess.run(command(monitor.runs_dir, free_row(4)), capture_output=True, text=True, timeout=30)
    assert second.returncode == 2
    assert "in use by pid" in second.stderr and "--data-dir" in second.stderr
    assert connect(monitor.runs_dir).query("1")


@pytest.mark.parametrize("offset", [0, 2])
def test_a_taken_port(tmp_path: Path, offset: int) -> None:
    require("prometheus")
    port = free_row(4)
    with socket.socket() as server:
        server.bind(("127.0.0.1", port + offset))
        server.listen()
        done = subprocess.run(command(tmp_path / "runs", port), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2
    assert f"port {port + offset}" in done.stderr and f"(pid {os.getpid()})" in done.stderr and "--port" in done.stderr
    assert not endpoints_path(tmp_path / "runs").exists()


def test_without_prometheus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run(command(tmp_path / "runs", free_row(4)), capture_output=True, text=True, timeout=30)
    assert done.returncode == 3
    assert "apt-get install prometheus" in done.stderr


def test_a_grafana_that_is_installed(tmp_path: Path) -> None:
    """A stand-in for the server: what is under test is how it is started, not Grafana."""
    program = tmp_path / "bin" / "grafana-server"
    program.parent.mkdir()
    program.write_text(FAKE_GRAFANA.format(python=sys.executable))
    program.chmod(0o755)
    running = start(tmp_path, path=f"{program.parent}:{os.environ['PATH']}")
    try:
        running.wait_ready()
        assert f"http://127.0.0.1:{running.port + 1}" in running.output.read_text()
        log = (running.runs_dir / ".monitor" / "logs" / "grafana-server.log").read_text()
        assert f"url: http://127.0.0.1:{running.port}" in log
    finally:
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--port", "-1"], "'-1' is no port"),
        (["--port", "65533"], "'65533' is no port"),
        (["--scrape-interval", "5"], "'5' is no time"),
        (["--scrape-interval", "1m"], "'1m' is no time"),
        (["--scrape-interval", "30s"], "at most 15s"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.monitor", "up", "--runs-dir", str(tmp_path), *arguments],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 2 and named in done.stderr


def test_folders_that_cannot_be_written(tmp_path: Path) -> None:
    require("prometheus")
    (tmp_path / "file").touch()
    done = subprocess.run(command(tmp_path / "file" / "runs", free_row(4)), capture_output=True, text=True, timeout=30)
    assert done.returncode == 2 and "--data-dir" in done.stderr and "not writable" in done.stderr


def test_any_free_ports(tmp_path: Path) -> None:
    running = start(tmp_path, "--port", "0")
    try:
        running.wait_ready()
        prometheus = connect(running.runs_dir)
        assert prometheus.query("1")
        assert prometheus.url in running.output.read_text()
    finally:
        assert running.stop() == 0


def test_status_without_prometheus(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness.monitor", "status", "--url", "http://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and "harness.monitor up" in done.stderr
