from pathlib import Path

import pytest
import yaml

from harness.monitor import render


def rendered(tmp_path: Path, alertmanager: int | None = 19093) -> dict:  # type: ignore[type-arg]
    path = render.prometheus_config(tmp_path, scrape_interval=2.5, discovery_port=19092, alertmanager_port=alertmanager)
    return yaml.safe_load(path.read_text())


def test_prometheus_config(tmp_path: Path) -> None:
    config = rendered(tmp_path)
    assert config["global"]["scrape_interval"] == config["global"]["scrape_timeout"] == "2500ms"
    assert [Path(one).is_file() for one in config["rule_files"]] == [True]
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["harness"]["file_sd_configs"][0]["files"] == [str(tmp_path / "targets" / "harness.json")]
    assert jobs["harness-discovery"]["static_configs"] == [{"targets": ["127.0.0.1:19092"]}]
    assert config["alerting"]["alertmanagers"][0]["static_configs"] == [{"targets": ["127.0.0.1:19093"]}]


def test_no_alertmanager(tmp_path: Path) -> None:
    assert "alerting" not in rendered(tmp_path, alertmanager=None)


def test_grafana_provisioning(tmp_path: Path) -> None:
    folder = render.grafana_provisioning(tmp_path, 19090)
    source = yaml.safe_load((folder / "datasources" / "prometheus.yml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "dashboards" / "harness.yml").read_text())["providers"][0]
    assert source["url"] == "http://127.0.0.1:19090"
    assert (Path(provider["options"]["path"]) / "run_overview.json").is_file()


def test_a_package_without_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "REPOSITORY", tmp_path)
    with pytest.raises(render.ConfigError, match=r"pip install -e"):
        rendered(tmp_path)


def test_a_config_that_lost_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = yaml.safe_load(render.repository_file("monitoring/prometheus.yml").read_text())
    config["scrape_configs"].pop(0)
    (tmp_path / "monitoring" / "rules").mkdir(parents=True)
    (tmp_path / "monitoring" / "rules" / "harness.yml").touch()
    (tmp_path / "monitoring" / "prometheus.yml").write_text(yaml.safe_dump(config))
    monkeypatch.setattr(render, "REPOSITORY", tmp_path)
    with pytest.raises(render.ConfigError, match="'harness' is missing"):
        rendered(tmp_path)
