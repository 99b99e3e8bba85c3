"""The dashboards in the repository are those that the builder writes, and hold what their readers rely on."""

import json
import re
from typing import Any

import pytest
import yaml

from harness.monitor.panels import dashboard_queries
from harness.monitor.render import REPOSITORY

pytest.importorskip("grafana_foundation_sdk")
from grafana.build import BadQuery, check, generate

RULES = REPOSITORY / "monitoring" / "rules" / "harness.yml"
BOARDS = {path: json.loads(text) for path, text in generate().items()}
PANELS = [panel for board in BOARDS.values() for panel in board["panels"] if panel["type"] != "row"]


def test_files_are_up_to_date() -> None:
    for path, text in generate().items():
        assert path.read_text() == text, "run `python -m grafana.build` and commit what it wrote"
    assert {path.name for path in BOARDS} == {path.name for path in (REPOSITORY / "grafana/dashboards").iterdir()}


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_panel(panel: dict[str, Any]) -> None:
    assert len(panel["description"]) > 20
    assert panel["targets"]
    for target in panel["targets"]:
        assert re.search(r'run=~?"\$run"', target["expr"]), "shows other runs too"


def test_panels_fill_the_grid_without_overlap() -> None:
    for board in BOARDS.values():
        cells: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            mine = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            assert not mine & cells, panel["title"]
            assert max(x for x, _ in mine) < 24
            cells |= mine
        ids = [panel["id"] for panel in board["panels"]]
        assert len(set(ids)) == len(ids)


def test_metrics_exist_in_the_rules_or_the_catalogue() -> None:
    """A misspelt name would be a panel that is empty for ever; what is exported is held against this in tests/e2e."""
    known = set(re.findall(r"\bharness[:_][\w:]+", RULES.read_text()))
    known |= {
        f"harness_{name}"
        for name in (
            "train_step", "train_loss", "train_grad_norm", "train_learning_rate", "train_step_seconds_bucket",
            "train_model_flops_utilization_ratio", "train_rank_comm_wait_seconds_total", "data_read_bytes_total",
            "data_queue_batches", "data_resident_ratio", "stage_ready_ratio", "ckpt_last_success_timestamp_seconds", "ckpt_save_seconds_sum",
            "ckpt_save_seconds_count", "agent_cpu_seconds_total", "agent_resident_bytes", "gpu_utilization_ratio",
            "gpu_temperature_celsius", "gpu_power_watts", "gpu_sm_clock_hertz", "gpu_sm_clock_max_hertz",
            "gpu_throttle_seconds_total", "gpu_memory_used_bytes",
        )
    }  # fmt: skip
    for board in BOARDS.values():
        for query in dashboard_queries(board, "a"):
            assert set(re.findall(r"\bharness[:_][\w:]+", query.expr)) <= known, query.title


@pytest.mark.parametrize("expr", ["sum(rate(foo[5m])", 'x{run="$nobody"}'])
def test_bad_queries_are_refused(expr: str) -> None:
    panel = {"title": "Broken", "type": "stat", "description": "", "targets": [{"expr": expr}]}
    with pytest.raises((BadQuery, ValueError)):
        check({"panels": [panel], "annotations": {"list": []}})


def test_provisioning() -> None:
    source = yaml.safe_load((REPOSITORY / "grafana/provisioning/datasources/prometheus.yml").read_text())
    assert source["datasources"][0]["type"] == "prometheus"
    provider = yaml.safe_load((REPOSITORY / "grafana/provisioning/dashboards/harness.yml").read_text())
    assert provider["providers"][0]["type"] == "file"
