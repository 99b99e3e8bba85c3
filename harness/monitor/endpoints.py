"""`RUNS_DIR/.monitor/endpoints.json`: where the monitoring of these runs listens, for as long as it runs."""

from pathlib import Path

from harness.run.files import read_json, write_json


def endpoints_path(runs_dir: Path) -> Path:
    return runs_dir / ".monitor" / "endpoints.json"


def read_endpoints(runs_dir: Path) -> dict[str, str]:
    """Component name -> URL; empty where nothing was started or the file cannot be read."""
    try:
        content = read_json(endpoints_path(runs_dir))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}


def write_endpoints(runs_dir: Path, urls: dict[str, str]) -> None:
    """Replace the file atomically. Raises OSError where `runs_dir` is not writable."""
    path = endpoints_path(runs_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, urls)


def remove_endpoints(runs_dir: Path, urls: dict[str, str]) -> None:
    """Remove the file if it still says `urls`: another monitor's entry stays."""
    if read_endpoints(runs_dir) == urls:
        endpoints_path(runs_dir).unlink(missing_ok=True)
