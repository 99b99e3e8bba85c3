"""The client against a server that answers as Prometheus does (the real one is in test_up.py), and as it does not."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from harness.monitor.client import DEFAULT_URL, Prometheus, PrometheusUnavailable, QueryError, Sample, connect
from harness.monitor.endpoints import read_endpoints, remove_endpoints, write_endpoints
from harness.monitor.status import render_status

ANSWERS: dict[str, Any] = {
    "/api/v1/query": {
        "resultType": "vector",
        "result": [{"metric": {"run": "a"}, "value": [1.5, "NaN"]}, {"metric": {"run": "b"}, "value": [1.5, "+Inf"]}],
    },
    "/api/v1/alerts": {
        "alerts": [
            {
                "labels": {"alertname": "HarnessReadStuck", "run": "a", "node": "n1", "severity": "page"},
                "annotations": {"summary": "a read hangs"},
                "state": "firing",
                "activeAt": "2026-01-01T00:00:00Z",
            },
            {"labels": {"alertname": "HarnessNodeLost", "run": "b"}, "state": "pending"},
        ]
    },
    "/api/v1/targets": {
        "activeTargets": [
            {
                "scrapeUrl": "http://n1:9/metrics",
                "health": "down",
                "lastError": "connection refused",
                "labels": {"job": "harness", "run": "a", "attempt": "1", "node": "n1"},
            },
            {"scrapeUrl": "http://127.0.0.1:9092/metrics", "health": "up", "labels": {"job": "harness-discovery"}},
        ]
    },
}


class FakePrometheus(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        expr = parse_qs(url.query).get("query", [""])[0]
        status, body = 200, json.dumps({"status": "success", "data": ANSWERS.get(url.path)})
        if expr == "bad(":
            status, body = 400, json.dumps({"status": "error", "errorType": "bad_data", "error": "parse error: oh"})
        elif expr == "1":
            body = json.dumps({"status": "success", "data": {"resultType": "scalar", "result": [2.0, "1"]}})
        elif expr == "x[1m]":
            body = json.dumps({"status": "success", "data": {"resultType": "matrix", "result": []}})
        elif expr == "starting":
            status, body = 503, "Service Unavailable"
        elif expr == "foreign":
            body = "<html>It works!</html>"
        elif expr == "hang":
            self.server.release.wait(30)  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


@pytest.fixture
def prometheus() -> Iterator[Prometheus]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakePrometheus)
    server.release = threading.Event()  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Prometheus(f"http://127.0.0.1:{server.server_port}/", timeout=0.5)
    server.release.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


def test_query(prometheus: Prometheus) -> None:
    first, second = prometheus.query("up")
    assert first.labels == {"run": "a"} and first.value != first.value and first.time == 1.5
    assert second.value == float("inf")
    assert prometheus.query("1") == [Sample({}, 1.0, 2.0)]


def test_refused_queries(prometheus: Prometheus) -> None:
    with pytest.raises(QueryError, match="parse error: oh"):
        prometheus.query("bad(")
    with pytest.raises(QueryError, match="matrix"):
        prometheus.query("x[1m]")


@pytest.mark.parametrize("expr", ["starting", "foreign", "hang"])
def test_unavailable(prometheus: Prometheus, expr: str) -> None:
    with pytest.raises(PrometheusUnavailable):
        prometheus.query(expr)


def test_nothing_there() -> None:
    with pytest.raises(PrometheusUnavailable, match="refused"):
        Prometheus("http://127.0.0.1:1").alerts()


def test_alerts_and_targets_of_one_run(prometheus: Prometheus) -> None:
    assert [(alert.name, alert.firing) for alert in prometheus.alerts()] == [
        ("HarnessReadStuck", True),
        ("HarnessNodeLost", False),
    ]
    assert [alert.name for alert in prometheus.alerts("a")] == ["HarnessReadStuck"]
    assert [target.error for target in prometheus.targets("a")] == ["connection refused"]
    assert prometheus.targets("nobody") == []


def test_a_proxy_in_the_environment_is_not_asked(prometheus: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert Prometheus(prometheus.url).query("up")


def test_status(prometheus: Prometheus) -> None:
    text = render_status(prometheus)
    assert "nodes: 0 up, 1 not" in text
    assert "down    a  attempt 1  n1  http://n1:9/metrics  connection refused" in text
    assert "alerts: 1 firing, 1 pending" in text
    assert "firing  page   HarnessReadStuck  node=n1 run=a" in text
    assert "a read hangs" in text
    assert "HarnessWatchdog is silent" in text


def test_endpoints(tmp_path: Path) -> None:
    assert connect(tmp_path).url == DEFAULT_URL
    mine = {"prometheus": "http://127.0.0.1:19090"}
    write_endpoints(tmp_path, mine)
    assert connect(tmp_path).url == mine["prometheus"]
    remove_endpoints(tmp_path, {"prometheus": "http://127.0.0.1:9999"})  # another monitor's
    assert read_endpoints(tmp_path) == mine
    remove_endpoints(tmp_path, mine)
    assert read_endpoints(tmp_path) == {}
    (tmp_path / ".monitor" / "endpoints.json").write_text("[half")
    assert read_endpoints(tmp_path) == {}
