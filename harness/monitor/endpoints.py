"""`RUNS_DIR/.monitor/endpoints.json`: where the monitoring of these runs listens, for as long as it runs."""

import json
import os
from pathlib import Path


def endpoints_path(runs_dir: Path) -> Path:
    return runs_dir / ".monitor" / "endpoints.json"


def read_endpoints(runs_dir: Path) -> dict[str, str]:
    """Component name -> URL; empty where nothing was started or the file cannot be read."""
    try:
        content = json.loads(endpoints_path(runs_dir).read_text())
    except (OSError, ValueError):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)} if isinstance(content, dict) else {}


def write_endpoints(runs_dir: Path, urls: dict[str, str]) -> None:
    """Replace the file atomically. Raises OSError where `runs_dir` is not writable."""
    path = endpoints_path(runs_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp{os.getpid()}")
    temporary.write_text(json.dumps(urls, indent=2) + "\n")
    os.replace(temporary, path)


def remove_endpoints(runs_dir: Path, urls: dict[str, str]) -> None:
    """Remove the file if it still says `urls`: another monitor's entry stays."""
    if read_endpoints(runs_dir) == urls:
        endpoints_path(runs_dir).unlink(missing_ok=True)
