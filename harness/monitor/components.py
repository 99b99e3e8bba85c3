"""What `monitor up` runs: the command, address and files of each component, where it is installed."""

import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from harness.monitor import render
from harness.monitor.ports import LOOPBACK

INSTALL = {
    "prometheus": "apt-get install prometheus",
    "alertmanager": "apt-get install prometheus-alertmanager",
    "grafana": "https://grafana.com/docs/grafana/latest/setup-grafana/installation/",
}
PROGRAMS = {
    "prometheus": ("prometheus",),
    "alertmanager": ("prometheus-alertmanager", "alertmanager"),  # Debian's name, upstream's name
    "grafana": ("grafana-server",),
}
GRAFANA_HOME = Path("/usr/share/grafana")


@dataclass(frozen=True)
class Ports:
    """Four ports in a row, so that one flag moves them all; from 9090 on, Prometheus and Alertmanager have their usual ones."""

    first: int

    @property
    def prometheus(self) -> int:
        return self.first

    @property
    def grafana(self) -> int:
        return self.first + 1

    @property
    def discovery(self) -> int:
        return self.first + 2

    @property
    def alertmanager(self) -> int:
        return self.first + 3


@dataclass(frozen=True)
class Component:
    """One program to run. It is ready once `url` + `ready_path` answers 200."""

    name: str
    command: tuple[str, ...]
    port: int
    ready_path: str
    log: Path
    note: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"


def find_program(name: str) -> str | None:
    """Path of the program behind a component, or None. Debian keeps some of them where users' PATH does not look."""
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin"
    return next((found for program in PROGRAMS[name] if (found := shutil.which(program, path=path))), None)


def discovery(targets_dir: Path, data_dir: Path, ports: Ports) -> Component:
    """The reaper, as a process of its own: it alone touches the shared file system and may hang there."""
    command = (
        *(sys.executable, "-m", "harness.monitor", "reap", "--targets-dir", str(targets_dir)),
        *("--sd-dir", str(data_dir / "targets"), "--port", str(ports.discovery)),
    )
    log = data_dir / "logs" / "discovery.log"
    return Component("discovery", command, ports.discovery, "/metrics", log, f"watches {targets_dir}")


def prometheus(program: str, data_dir: Path, ports: Ports, scrape_interval: float, alerting: bool) -> Component:
    """Writes Prometheus' config into `data_dir`. Raises render.ConfigError."""
    config = render.prometheus_config(
        data_dir,
        scrape_interval=scrape_interval,
        discovery_port=ports.discovery,
        alertmanager_port=ports.alertmanager if alerting else None,
    )
    command = (
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={data_dir / 'prometheus'}",
        "--storage.tsdb.retention.time=15d",
        f"--web.listen-address={LOOPBACK}:{ports.prometheus}",
    )
    return Component("prometheus", command, ports.prometheus, "/-/ready", data_dir / "logs" / "prometheus.log")


def alertmanager(program: str, data_dir: Path, ports: Ports) -> Component:
    """Runs on the repository's own alertmanager.yml, where receivers are added."""
    config = render.repository_file("monitoring/alertmanager.yml")
    command = (
        program,
        f"--config.file={config}",
        f"--storage.path={data_dir / 'alertmanager'}",
        f"--web.listen-address={LOOPBACK}:{ports.alertmanager}",
        "--cluster.listen-address=",
    )
    log = data_dir / "logs" / "alertmanager.log"
    return Component("alertmanager", command, ports.alertmanager, "/-/ready", log, f"receivers in {config}")


def grafana(program: str, data_dir: Path, ports: Ports) -> Component:
    """Writes the provisioning into `data_dir`. Everybody who reaches loopback may look, nobody may edit unless logged in."""
    environment = {
        "GF_SERVER_HTTP_ADDR": LOOPBACK,
        "GF_SERVER_HTTP_PORT": str(ports.grafana),
        "GF_PATHS_DATA": str(data_dir / "grafana"),
        "GF_PATHS_LOGS": str(data_dir / "logs"),
        "GF_PATHS_PLUGINS": str(data_dir / "grafana" / "plugins"),
        "GF_PATHS_PROVISIONING": str(render.grafana_provisioning(data_dir, ports.prometheus)),
        "GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH": str(
            render.repository_file("grafana/dashboards/run_overview.json")
        ),
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
    }
    command = (program, "--homepath", str(GRAFANA_HOME))
    log = data_dir / "logs" / "grafana-server.log"
    return Component("grafana", command, ports.grafana, "/api/health", log, environment=environment)
