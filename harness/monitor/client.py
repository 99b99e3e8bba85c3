"""Questions to Prometheus over its HTTP API, with the standard library alone and a short timeout."""

import json
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.monitor.endpoints import read_endpoints

DEFAULT_URL = "http://127.0.0.1:9090"


class PrometheusUnavailable(Exception):
    """Nothing that speaks Prometheus' API answers at the address, or not in time."""


class QueryError(ValueError):
    """Prometheus answered, and says that the expression is wrong or cannot be evaluated."""


@dataclass(frozen=True)
class Sample:
    """One series' value (`nan` and infinities included) at Unix time `time`."""

    labels: dict[str, str]
    value: float
    time: float


@dataclass(frozen=True)
class Alert:
    """A pending or firing alert. `since` is the RFC 3339 time at which its condition became true."""

    name: str
    state: str
    since: str
    labels: dict[str, str]
    annotations: dict[str, str]

    @property
    def firing(self) -> bool:
        return self.state == "firing"


@dataclass(frozen=True)
class Target:
    """One scraped address. `health` is up, down or unknown (not scraped yet); `error` says why it is down."""

    url: str
    health: str
    error: str
    labels: dict[str, str] = field(default_factory=dict)


class Prometheus:
    """A Prometheus server at `url`; every method raises PrometheusUnavailable after `timeout` seconds at most."""

    def __init__(self, url: str = DEFAULT_URL, timeout: float = 1.0) -> None:
        self.url = url.rstrip("/")
        self._timeout = timeout
        # Monitoring is local: a proxy from the environment would only get in the way.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def query(self, expr: str) -> list[Sample]:
        """The expression's current value: one sample per series, one without labels for a scalar.

        Raises QueryError for an expression that Prometheus refuses.
        """
        data = self._get("/api/v1/query", {"query": expr})
        kind, result = data["resultType"], data["result"]
        if kind == "scalar":
            return [Sample({}, float(result[1]), float(result[0]))]
        if kind != "vector":
            raise QueryError(f"{expr!r} is a {kind}; an instant vector or a scalar is needed")
        return [Sample(row["metric"], float(row["value"][1]), float(row["value"][0])) for row in result]

    def alerts(self, run: str | None = None) -> list[Alert]:
        """Pending and firing alerts, of one run if given. HarnessWatchdog, which always fires, is among those of no run."""
        found = [
            Alert(
                name=row["labels"].get("alertname", ""),
                state=row["state"],
                since=row.get("activeAt", ""),
                labels=row["labels"],
                annotations=row.get("annotations", {}),
            )
            for row in self._get("/api/v1/alerts")["alerts"]
        ]
        return [alert for alert in found if run is None or alert.labels.get("run") == run]

    def targets(self, run: str | None = None) -> list[Target]:
        """Active scrape targets, of one run if given."""
        found = [
            Target(
                url=row["scrapeUrl"],
                health=row["health"],
                error=row.get("lastError", ""),
                labels=row["labels"],
            )
            for row in self._get("/api/v1/targets", {"state": "active"})["activeTargets"]
        ]
        return [target for target in found if run is None or target.labels.get("run") == run]

    def _get(self, path: str, parameters: dict[str, str] | None = None) -> Any:
        url = self.url + path + ("?" + urllib.parse.urlencode(parameters) if parameters else "")
        try:
            with self._opener.open(url, timeout=self._timeout) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            if error.code in (400, 422):
                raise QueryError(_error_text(error)) from None
            raise PrometheusUnavailable(f"{self.url}: HTTP {error.code}") from None
        except (OSError, ValueError) as error:  # URLError is an OSError; a foreign server's answer is no JSON
            raise PrometheusUnavailable(f"{self.url}: {getattr(error, 'reason', error)}") from None
        if not isinstance(answer, dict) or answer.get("status") != "success":
            raise PrometheusUnavailable(f"{self.url}{path} does not answer as Prometheus does")
        return answer["data"]


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (OSError, ValueError, KeyError, TypeError):
        return f"HTTP {error.code}"


def connect(runs_dir: Path, timeout: float = 1.0) -> Prometheus:
    """The Prometheus that `harness.monitor up` runs for `runs_dir`, or else the one at the default address."""
    return Prometheus(read_endpoints(runs_dir).get("prometheus", DEFAULT_URL), timeout)
