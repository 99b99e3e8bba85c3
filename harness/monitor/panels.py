"""The queries of a Grafana dashboard with its variables filled in, to be parsed or put to a Prometheus."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import harness

RUN_OVERVIEW = Path(harness.__file__).resolve().parent.parent / "grafana" / "dashboards" / "run_overview.json"
GPU_ONLY = "Needs GPUs."
"""A panel whose description begins so has data only where there are GPUs."""


class PanelQuery(NamedTuple):
    """One query of one panel. `expr` is plain PromQL."""

    title: str
    expr: str
    needs_gpu: bool


def panel_queries(dashboard: Path, run: str, *, rate_interval: str = "1m", time_range: str = "1h") -> list[PanelQuery]:
    """Every query of every panel for `run`, with $__rate_interval and $__range as given.

    Raises ValueError for a variable that is not known here, and OSError or ValueError for a file that is no dashboard.
    """
    return dashboard_queries(json.loads(dashboard.read_text()), run, rate_interval=rate_interval, time_range=time_range)


def dashboard_queries(
    dashboard: dict[str, Any], run: str, *, rate_interval: str = "1m", time_range: str = "1h"
) -> list[PanelQuery]:
    """As `panel_queries`, from the dashboard's JSON object."""
    values = {"run": run, "__rate_interval": rate_interval, "__range": time_range}
    return [
        PanelQuery(panel["title"], fill(target["expr"], values), panel["description"].startswith(GPU_ONLY))
        for panel in _panels(dashboard)
        for target in panel.get("targets", [])
    ]


def fill(expr: str, values: dict[str, str]) -> str:
    """`expr` with $name and ${name} replaced. Raises ValueError if a variable is left over."""
    for name in sorted(values, key=len, reverse=True):  # $__range must not eat the beginning of a longer name
        expr = expr.replace("${" + name + "}", values[name]).replace("$" + name, values[name])
    if "$" in expr:
        raise ValueError(f"unknown variable in {expr!r}; known: {sorted(values)}")
    return expr


def _panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All panels but rows, with those inside collapsed rows."""
    for panel in dashboard.get("panels", []):
        if panel.get("type") == "row":
            yield from _panels(panel)
        else:
            yield panel
