"""A real Alertmanager on the repository's config: one notification per run that holds symptom and cause."""

import json
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import pytest
import yaml

from harness.monitor.ports import free_row
from harness.monitor.render import REPOSITORY
from tests.conftest import require
from tests.waiting import wait_for

CONFIG = REPOSITORY / "monitoring" / "alertmanager.yml"
pytestmark = pytest.mark.prometheus


def test_config_is_valid() -> None:
    require("amtool")
    done = subprocess.run(["amtool", "check-config", str(CONFIG)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (["alertname=HarnessThroughputDrop", "severity=page", "run=a"], "on-call"),
        (["alertname=HarnessExporterBlind", "severity=ticket", "run=a"], "tickets"),
        (["alertname=HarnessWatchdog", "severity=none"], "dead-mans-switch"),
    ],
)
def test_routes(labels: list[str], receiver: str) -> None:
    require("amtool")
    command = ["amtool", "config", "routes", "test", f"--config.file={CONFIG}", *labels]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == [receiver]


@pytest.fixture
def notifications() -> Iterator[tuple[str, "Queue[dict[str, Any]]"]]:
    """URL of a webhook, and what was sent to it."""
    received: Queue[dict[str, Any]] = Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()


@pytest.fixture
def alertmanager(tmp_path: Path, notifications: tuple[str, "Queue[dict[str, Any]]"]) -> Iterator[str]:
    """URL of an Alertmanager that tells the webhook; its waits are cut to a second."""
    program = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
    if program is None:
        require("prometheus-alertmanager")
    config = yaml.safe_load(CONFIG.read_text())
    config["route"]["group_wait"] = "1s"
    config["receivers"][0]["webhook_configs"] = [{"url": notifications[0]}]
    (tmp_path / "alertmanager.yml").write_text(yaml.safe_dump(config))
    port = free_row(1)
    command = [
        *(str(program), f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path / 'data'}"),
        *(f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address="),
    ]
    with open(tmp_path / "log", "wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: urllib.request.urlopen(url + "/-/ready", timeout=1).status == 200, "Alertmanager is ready")
        yield url
    finally:
        process.terminate()
        process.wait(10)


def post(url: str, *labels: dict[str, str]) -> None:
    body = json.dumps([{"labels": one, "annotations": {"summary": "x"}} for one in labels]).encode()
    request = urllib.request.Request(url + "/api/v2/alerts", body, {"Content-Type": "application/json"})
    urllib.request.urlopen(request, timeout=5).close()


def test_cause_and_symptom_of_a_run_are_one_notification(
    alertmanager: str, notifications: tuple[str, "Queue[dict[str, Any]]"]
) -> None:
    storage = {"severity": "page", "kind": "cause", "mount": "/data"}
    drop = {"alertname": "HarnessThroughputDrop", "severity": "page", "kind": "symptom"}
    post(
        alertmanager,
        {**drop, "run": "a"},
        {**storage, "run": "a", "alertname": "HarnessColdShardReads", "cause": "storage_eviction"},
        {**storage, "run": "a", "alertname": "HarnessStorageSlowManyNodes", "cause": "shared_storage"},
        {**storage, "run": "b", "alertname": "HarnessStorageSlowManyNodes", "cause": "shared_storage"},
    )
    messages = [notifications[1].get(timeout=30) for _ in range(2)]
    by_run = {one["groupLabels"]["run"]: {alert["labels"]["alertname"] for alert in one["alerts"]} for one in messages}
    assert by_run == {
        "a": {"HarnessThroughputDrop", "HarnessColdShardReads"},  # the vaguer storage alert is inhibited
        "b": {"HarnessStorageSlowManyNodes"},  # but not by another run's
    }
    time.sleep(1)
    assert notifications[1].empty()
