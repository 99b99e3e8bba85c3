"""Prometheus' own tools on monitoring/: the config and rules are valid, and promtool's unit tests of the alerts pass."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness.monitor.render import REPOSITORY
from tests.conftest import require

MONITORING = REPOSITORY / "monitoring"
RULES = MONITORING / "rules" / "harness.yml"
TESTS = sorted((MONITORING / "tests").glob("*.yml"))
ALERTS = (
    "HarnessThroughputDrop", "HarnessNoProgress", "HarnessColdShardReads", "HarnessStorageSlowManyNodes",
    "HarnessStorageSlowOneNode", "HarnessReadStuck", "HarnessNodeLost", "HarnessRestartStorm", "HarnessNonFinite",
    "HarnessCheckpointFailed", "HarnessDiskFull", "HarnessExporterBlind", "HarnessDiscoveryStale", "HarnessWatchdog",
)  # fmt: skip
METRIC = re.compile(r"ALERTS\{(.*)\}")


def promtool(*arguments: str | Path) -> str:
    require("promtool")
    done = subprocess.run(["promtool", *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def group() -> dict[str, Any]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    assert len(groups) == 1, "records and alerts of several groups would be evaluated at different moments"
    return groups[0]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in group()["rules"] if "alert" in rule}


def labels_in_tests() -> dict[str, list[dict[str, str]]]:
    """Alert -> labels with which promtool's tests expect it."""
    found: dict[str, list[dict[str, str]]] = {}
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for query in test["promql_expr_test"]:
                for sample in query.get("exp_samples", []):
                    if match := METRIC.fullmatch(sample["labels"]):
                        labels = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
                        found.setdefault(labels["alertname"], []).append(labels)
    return found


@pytest.mark.prometheus
def test_config_is_valid() -> None:
    assert "WARNING" not in promtool("check", "config", MONITORING / "prometheus.yml")


@pytest.mark.prometheus
def test_rules_are_valid() -> None:
    promtool("check", "rules", RULES)


@pytest.mark.prometheus
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_must_and_only_then(path: Path) -> None:
    promtool("test", "rules", path)


@pytest.mark.prometheus
@pytest.mark.parametrize("name", ALERTS)
def test_each_alert_is_tested(name: str, tmp_path: Path) -> None:
    """Without the alert, some of promtool's tests must fail."""
    require("promtool")
    rules = yaml.safe_load(RULES.read_text())
    for rule in rules["groups"][0]["rules"]:
        if rule.get("alert") == name:
            rule["expr"] = f"({rule['expr']}) and vector(0) > 1"
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "harness.yml").write_text(yaml.safe_dump(rules))
    (tmp_path / "tests").mkdir()
    mine = [path for path in TESTS if f'alertname="{name}"' in path.read_text()]
    for path in mine:
        (tmp_path / "tests" / path.name).write_text(path.read_text())
    paths = [str(tmp_path / "tests" / path.name) for path in mine]
    assert paths and subprocess.run(["promtool", "test", "rules", *paths], capture_output=True).returncode == 1


def test_alerts_are_those_of_the_contract() -> None:
    assert set(alerts()) == set(ALERTS)
    assert group()["interval"] == "15s"


@pytest.mark.parametrize("name", [name for name in ALERTS if name != "HarnessWatchdog"])
def test_labels_and_texts(name: str) -> None:
    rule = alerts()[name]
    labels = rule["labels"]
    assert labels["severity"] in ("page", "ticket")
    assert labels["kind"] in ("symptom", "cause")
    assert ("cause" in labels) == (labels["kind"] == "cause")
    assert set(rule["annotations"]) == {"summary", "action"}


def test_throughput_drop_fires_at_once_and_holds_on() -> None:
    rule = alerts()["HarnessThroughputDrop"]
    assert "for" not in rule and rule["keep_firing_for"] == "5m"


@pytest.mark.parametrize("name", ALERTS)
def test_texts_use_only_labels_that_the_alert_has(name: str) -> None:
    text = " ".join(alerts()[name]["annotations"].values())
    optional = set(re.findall(r"(?:if|with) \$labels\.(\w+)", text))
    used = set(re.findall(r"\$labels\.(\w+)", text)) - optional
    expected = labels_in_tests()[name]
    assert expected, "no test expects it to fire"
    for labels in expected:
        assert used <= set(labels)
