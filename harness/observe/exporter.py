"""Serves the last results of a node's collectors at GET /metrics, and nothing else."""

import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from harness.observe.collector import Background, Collector, Worker

log = logging.getLogger(__name__)

SCRAPE_WAIT_SECONDS = 1.0
"""Longest that a scrape waits for all collectors together; then it serves what they said last."""

CLOSE_SECONDS = 5.0
"""Longest that `close` waits for all collectors together."""

HTTP_POLL_SECONDS = 0.5
"""How often the server looks whether it shall stop."""


class ExporterError(Exception):
    """/metrics can't be served as configured; the message names key, value and fix."""


class Exporter:
    """The node's /metrics.

    A plain collector is called at each scrape, one wrapped in `Background` on its own clock, each in its own thread:
    a collector that raises, blocks or hangs never takes the page down. Families of one name are merged.
    """

    def __init__(self, collectors: Sequence[Collector | Background], host: str, port: int) -> None:
        """Listen on `host`:`port` (0: any free port). Raises ExporterError; ValueError for two collectors of one name."""
        plain = [c.collector if isinstance(c, Background) else c for c in collectors]
        names = [collector.name for collector in plain]
        if len(set(names)) < len(names):
            raise ValueError(f"two collectors of one name: {sorted(names)}")
        registry = CollectorRegistry(support_collectors_without_names=True)
        self._server = _listen(host, port)  # before any thread is started: it may fail
        self._workers = [
            Worker(collector, given.every_seconds if isinstance(given, Background) else None)
            for collector, given in zip(plain, collectors, strict=True)
        ]
        registry.register(self)
        self._server.set_app(_only_metrics(make_wsgi_app(registry, disable_compression=True)))
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(HTTP_POLL_SECONDS,), name="metrics-http", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are really listened on."""
        host, port = self._server.socket.getsockname()[:2]
        return host, port

    def close(self) -> None:
        """Stop serving and end every collector; collectors that hang delay this by CLOSE_SECONDS and are left behind."""
        self._server.shutdown()
        self._server.server_close()
        for worker in self._workers:
            worker.stop()
        deadline = time.monotonic() + CLOSE_SECONDS
        for worker in self._workers:
            worker.join(max(0.0, deadline - time.monotonic()))

    def collect(self) -> Iterable[Metric]:
        """All families, merged by name; called by prometheus_client for each scrape."""
        deadline = time.monotonic() + SCRAPE_WAIT_SECONDS
        tickets = [worker.ask() for worker in self._workers]
        for worker, ticket in zip(self._workers, tickets, strict=True):
            worker.wait(ticket, max(0.0, deadline - time.monotonic()))
        merged: dict[str, Metric] = {}
        for worker in self._workers:
            for metric in worker.metrics():
                if metric.name not in merged:
                    merged[metric.name] = Metric(metric.name, metric.documentation, metric.type)
                merged[metric.name].samples.extend(metric.samples)
        yield from merged.values()
        yield from self._self_metrics()

    def _self_metrics(self) -> Iterable[Metric]:
        label = ["collector"]
        seconds = GaugeMetricFamily("harness_exporter_collect_seconds", "Duration of the last call", labels=label)
        errors = CounterMetricFamily("harness_exporter_errors_total", "Calls that failed", labels=label)
        success = GaugeMetricFamily(
            "harness_exporter_last_success_timestamp_seconds", "Unix time of the last good result", labels=label
        )
        enabled = GaugeMetricFamily(
            "harness_exporter_collector_enabled", "0 where this machine has nothing to collect", labels=label
        )
        for worker in self._workers:
            name, health = [worker.collector.name], worker.health
            enabled.add_metric(name, float(health.enabled))
            errors.add_metric(name, health.errors)
            if health.enabled:
                seconds.add_metric(name, health.seconds)
                success.add_metric(name, health.last_success)
        return seconds, errors, success, enabled


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        # HTTPServer asks the DNS for the host's full name here, which can take many seconds on a compute node.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.socket.getsockname()[:2]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a client of /metrics went away", exc_info=True)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # a client that sends nothing must not hold a thread

    def log_message(self, format: str, *args: Any) -> None:
        """A line per scrape would drown the node's log."""


def _listen(host: str, port: int) -> _Server:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return (_Server6 if family == socket.AF_INET6 else _Server)((host, port), _Handler)
    except OverflowError as error:
        raise ExporterError(f"monitor.port={port}: a port is 0 (any free one) or 1-65535") from error
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            fix = "set monitor.port=0 for any free port, or to a port that this user may use and nobody else does"
            raise ExporterError(f"monitor.port={port}: can't listen on {host} ({error.strerror}); {fix}") from error
        fix = "set monitor.host to an address of this node, or to null"
        raise ExporterError(f"monitor.host={host}: can't listen there ({error.strerror}); {fix}") from error


def _only_metrics(metrics_app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] != "/metrics":
            start_response("404 Not Found", [("Content-Type", "text/plain")])
            return [b"only /metrics is served here\n"]
        return metrics_app(environ, start_response)

    return app
