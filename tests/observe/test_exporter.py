import errno
import http.client
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence

import pytest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from harness.observe import collector as collector_module
from harness.observe import exporter as exporter_module
from harness.observe.collector import Background, Collector, CollectorDisabled
from harness.observe.exporter import Exporter, ExporterError
from tests.observe.pages import Page
from tests.waiting import wait_for


class Counting:
    """Counts its calls; raises or hangs on demand."""

    def __init__(self, name: str = "counting", family: str = "harness_test_calls_total") -> None:
        self.name = name
        self.family = family
        self.calls = 0
        self.error: Exception | None = None
        self.released = threading.Event()
        self.released.set()
        self.threads: set[int] = set()
        self.closed = False

    def collect(self) -> Iterable[Metric]:
        self.calls += 1
        self.threads.add(threading.get_ident())
        self.released.wait()
        if self.error is not None:
            raise self.error
        family = CounterMetricFamily(self.family, "Calls", labels=["collector"])
        family.add_metric([self.name], self.calls)
        yield family

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def stop_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "HTTP_POLL_SECONDS", 0.01)


@pytest.fixture
def serve() -> Iterator:
    started: list[Exporter] = []

    def start(*collectors: Collector | Background) -> Exporter:
        started.append(Exporter(collectors, "127.0.0.1", 0))
        return started[-1]

    yield start
    for exporter in started:
        exporter.close()


def fetch(exporter: Exporter, path: str = "/metrics", **request: object) -> tuple[int, str]:
    host, port = exporter.address
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://{host}:{port}{path}", **request), timeout=20
        ) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def page(exporter: Exporter) -> Page:
    status, text = fetch(exporter)
    assert status == 200
    return Page(text)


def test_serves_what_collectors_say_at_the_moment_of_the_scrape(serve) -> None:
    exporter = serve(Counting())
    for calls in (1, 2, 3):
        assert page(exporter).get("harness_test_calls_total", collector="counting") == calls


@pytest.mark.parametrize("path", ["/", "/metrics/", "/metrics/x", "/favicon.ico", "/../metrics", "/metrics;x"])
def test_serves_nothing_else(serve, path: str) -> None:
    status, text = fetch(serve(Counting()), path)
    assert status == 404 and "harness_test" not in text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
def test_is_read_only(serve, method: str) -> None:
    collector = Counting()
    status, _ = fetch(serve(collector), data=b"x", method=method)
    assert status == 405 and collector.calls == 0


def test_a_failing_collector_keeps_its_last_good_result(serve) -> None:
    sick, well = Counting("sick"), Counting("well")
    exporter = serve(sick, well)
    page(exporter)
    sick.error = RuntimeError("no")
    second = page(exporter)
    assert second.get("harness_test_calls_total", collector="sick") == 1
    assert second.get("harness_test_calls_total", collector="well") == 2
    assert second.get("harness_exporter_errors_total", collector="sick") == 1
    assert second.get("harness_exporter_errors_total", collector="well") == 0
    healthy, stopped = (
        second.get("harness_exporter_last_success_timestamp_seconds", collector=name) for name in ("well", "sick")
    )
    assert healthy is not None and stopped is not None and healthy > stopped


def test_a_result_that_breaks_the_format_is_the_collectors_error_alone(serve) -> None:
    class Malformed:
        name = "malformed"

        def collect(self) -> Sequence[Metric]:
            family = GaugeMetricFamily("harness_test_bad", "Bad", labels=["mount"])
            family.add_metric([None], 1.0)  # type: ignore[list-item]
            return [family]

    result = page(serve(Malformed(), Counting()))
    assert result.get("harness_test_calls_total", collector="counting") == 1
    assert result.get("harness_exporter_errors_total", collector="malformed") == 1
    assert not result.series("harness_test_bad")


def test_a_hanging_collector_holds_one_thread_and_not_the_page(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "SCRAPE_WAIT_SECONDS", 0.2)
    hanging, well = Counting("hanging"), Counting("well")
    exporter = serve(hanging, well)
    page(exporter)
    hanging.released.clear()
    for _ in range(5):
        result = page(exporter)
        assert result.get("harness_test_calls_total", collector="hanging") == 1
    assert result.get("harness_test_calls_total", collector="well") == 6
    assert hanging.calls == 2 and len(hanging.threads) == 1
    hanging.released.set()
    wait_for(lambda: page(exporter).get("harness_test_calls_total", collector="hanging") == hanging.calls)
    assert len(hanging.threads) == 1


def test_a_stale_result_is_absent(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collector_module, "STALE_SECONDS", 0.3)
    sick = Counting("sick")
    exporter = serve(sick)
    page(exporter)
    sick.error = RuntimeError("no")
    wait_for(lambda: not page(exporter).series("harness_test_calls_total"))
    assert page(exporter).get("harness_exporter_collector_enabled", collector="sick") == 1


def test_a_background_collector_has_its_own_clock(serve) -> None:
    often, once = Counting("often"), Counting("once")
    exporter = serve(Background(often, 0.01), Background(once, 3600))
    wait_for(lambda: often.calls >= 5 and once.calls == 1)
    for _ in range(3):
        page(exporter)
    assert once.calls == 1
    assert page(exporter).get("harness_test_calls_total", collector="once") == 1


def test_a_disabled_collector_says_so_once_and_is_no_error(serve, caplog: pytest.LogCaptureFixture) -> None:
    absent = Counting("absent")
    absent.error = CollectorDisabled("no such device")
    caplog.set_level("INFO")
    exporter = serve(absent)
    for _ in range(3):
        result = page(exporter)
    assert result.get("harness_exporter_collector_enabled", collector="absent") == 0
    assert result.get("harness_exporter_errors_total", collector="absent") == 0
    assert absent.calls == 1
    assert [record.message for record in caplog.records].count("collector absent is off: no such device") == 1


def test_an_error_is_logged_once_per_bout(serve, caplog: pytest.LogCaptureFixture) -> None:
    sick = Counting("sick")
    exporter = serve(sick)
    for error in (RuntimeError("no"), RuntimeError("no"), None, RuntimeError("no")):
        sick.error = error
        page(exporter)
    assert len([record for record in caplog.records if "sick failed: RuntimeError: no" in record.message]) == 2


def test_families_of_one_name_are_one_family(serve) -> None:
    _, text = fetch(serve(Counting("a"), Counting("b")))
    assert text.count("# TYPE harness_test_calls_total counter") == 1
    assert len(Page(text).series("harness_test_calls_total")) == 2


def test_two_collectors_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two collectors of one name"):
        Exporter([Counting("a"), Counting("a")], "127.0.0.1", 0)


def test_speaks_openmetrics_to_prometheus(serve) -> None:
    class WithHistogram(Counting):
        def collect(self) -> Iterable[Metric]:
            yield from super().collect()
            yield HistogramMetricFamily("harness_test_seconds", "H", buckets=[("0.5", 1), ("+Inf", 3)], sum_value=4.0)

    accept = {"Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"}
    _, text = fetch(serve(WithHistogram()), headers=accept)
    families = {family.name: family for family in parse_openmetrics(text)}
    assert families["harness_test_seconds"].type == "histogram"
    assert families["harness_test_calls"].type == "counter"


def test_a_taken_port_names_key_value_and_fix() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ExporterError, match=rf"monitor\.port={port}.*127\.0\.0\.1.*monitor\.port=0"):
            Exporter([], "127.0.0.1", port)


def test_a_port_that_cannot_be_names_key_and_value() -> None:
    with pytest.raises(ExporterError, match=r"monitor\.port=70000.*1-65535"):
        Exporter([], "127.0.0.1", 70000)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_foreign_address_names_key_value_and_fix(host: str) -> None:
    with pytest.raises(ExporterError, match=rf"monitor\.host={re.escape(host)}.*address of this node"):
        Exporter([], host, 0)


def test_a_failed_start_leaves_no_thread() -> None:
    before = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ExporterError):
        Exporter([Counting()], "127.0.0.1", taken.getsockname()[1])
    assert threading.active_count() == before


def test_listens_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {errno.errorcode.get(error.errno or 0)}")
    exporter = Exporter([Counting()], "::1", 0)
    try:
        connection = http.client.HTTPConnection(*exporter.address)
        connection.request("GET", "/metrics")
        assert connection.getresponse().status == 200
        connection.close()
    finally:
        exporter.close()


def test_close_frees_the_port_and_closes_collectors() -> None:
    collector, background = Counting("a"), Counting("b")
    exporter = Exporter([collector, Background(background, 3600)], "127.0.0.1", 0)
    address = exporter.address
    page(exporter)
    exporter.close()
    assert collector.closed and background.closed
    Exporter([], *address).close()


def test_close_does_not_wait_for_a_hung_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter_module, "CLOSE_SECONDS", 0.1)
    hanging = Counting("hanging")
    hanging.released.clear()
    exporter = Exporter([Background(hanging, 1)], "127.0.0.1", 0)
    wait_for(lambda: hanging.calls == 1)
    exporter.close()
    assert not hanging.closed
    hanging.released.set()
    wait_for(lambda: hanging.closed)


def test_a_silent_client_does_not_stop_others(serve) -> None:
    exporter = serve(Counting())
    with socket.create_connection(exporter.address):
        start = time.monotonic()
        assert page(exporter).get("harness_test_calls_total", collector="counting") == 1
        assert time.monotonic() - start < exporter_module._Handler.timeout
