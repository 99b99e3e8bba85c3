"""Fills paths, ports and intervals into copies of the repository's Prometheus and Grafana files."""

from pathlib import Path
from typing import Any

import yaml

import harness
from harness.monitor.ports import LOOPBACK

REPOSITORY = Path(harness.__file__).resolve().parent.parent


class ConfigError(Exception):
    """A file of the repository is missing or is not what is expected of it; the message names it."""


def repository_file(relative: str) -> Path:
    """Absolute path of a file or folder in the repository. Raises ConfigError where the package stands without it."""
    path = REPOSITORY / relative
    if not path.exists():
        raise ConfigError(
            f"{path} is missing: monitoring runs from a clone of the repository, installed with `pip install -e .`"
        )
    return path


def prometheus_config(
    data_dir: Path, *, scrape_interval: float, discovery_port: int, alertmanager_port: int | None
) -> Path:
    """Write DATA_DIR/prometheus.yml and return its path. `scrape_interval` in seconds; no Alertmanager: no alerting.

    Raises ConfigError where monitoring/prometheus.yml has lost one of the two scrape jobs.
    """
    config = _load("monitoring/prometheus.yml")
    config["global"]["scrape_interval"] = _duration(scrape_interval)
    config["global"]["scrape_timeout"] = _duration(min(scrape_interval, 4.0))
    config["rule_files"] = [str(repository_file("monitoring/rules/harness.yml"))]
    if alertmanager_port is None:
        config.pop("alerting", None)
    else:
        targets = [f"{LOOPBACK}:{alertmanager_port}"]
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": targets}]}]}
    targets_dir = data_dir / "targets"
    targets_dir.mkdir(parents=True, exist_ok=True)  # Prometheus can't watch a folder that comes after it has started
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    try:
        jobs["harness"]["file_sd_configs"][0]["files"] = [str(targets_dir / "harness.json")]
        jobs["harness-discovery"]["static_configs"] = [{"targets": [f"{LOOPBACK}:{discovery_port}"]}]
    except KeyError as error:
        raise ConfigError(f"{REPOSITORY / 'monitoring/prometheus.yml'}: {error} is missing") from None
    return _dump(config, data_dir / "prometheus.yml")


def grafana_provisioning(data_dir: Path, prometheus_port: int) -> Path:
    """Write DATA_DIR/provisioning/ and return its path. Raises ConfigError."""
    source = _load("grafana/provisioning/datasources/prometheus.yml")
    source["datasources"][0]["url"] = f"http://{LOOPBACK}:{prometheus_port}"
    _dump(source, data_dir / "provisioning" / "datasources" / "prometheus.yml")
    provider = _load("grafana/provisioning/dashboards/harness.yml")
    provider["providers"][0]["options"]["path"] = str(repository_file("grafana/dashboards"))
    _dump(provider, data_dir / "provisioning" / "dashboards" / "harness.yml")
    return data_dir / "provisioning"


def _load(relative: str) -> Any:
    path = repository_file(relative)
    try:
        return yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from None


def _dump(config: Any, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _duration(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
