"""Writes grafana/dashboards/*.json: `python -m grafana.build` (needs `pip install -e '.[grafana]'`).

Every query is parsed first; nothing is written if one is no PromQL.
"""

import json
import sys
from pathlib import Path
from typing import Any

import promql_parser
from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana import run_overview
from harness.monitor.panels import dashboard_queries, fill

DASHBOARDS = Path(__file__).parent / "dashboards"


class BadQuery(Exception):
    """A panel's or annotation's query does not parse; the message names it."""


def generate() -> dict[Path, str]:
    """Path -> text of every dashboard. Raises BadQuery."""
    board = json.loads(JSONEncoder(sort_keys=True).encode(run_overview.build().build()))
    board["annotations"] = {"list": run_overview.annotations()}
    for number, panel in enumerate(board["panels"], start=1):
        panel["id"] = number  # Grafana would number them at each load, and links to one panel would break
    check(board)
    return {DASHBOARDS / "run_overview.json": json.dumps(board, indent=2, sort_keys=True) + "\n"}


def check(board: dict[str, Any]) -> None:
    """Raises BadQuery, which names the panel, if any query is not PromQL or has an unknown variable."""
    named = [(query.title, query.expr) for query in dashboard_queries(board, "some-run")]
    named += [(mark["name"], fill(mark["expr"], {"run": "some-run"})) for mark in board["annotations"]["list"]]
    for title, expr in named:
        try:
            promql_parser.parse(expr)
        except ValueError as error:
            raise BadQuery(f"{title}: {error}\n{expr}") from None


def main() -> int:
    try:
        dashboards = generate()
    except BadQuery as error:
        print(error, file=sys.stderr)
        return 1
    for path, text in dashboards.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
