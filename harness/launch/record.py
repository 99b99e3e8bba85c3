"""What a run is made of, for its record: code, versions, config."""

import hashlib
import json
import platform
import subprocess
import time
import uuid
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from harness import __version__

PACKAGES = ("torch", "transformers", "datatrove", "submitit", "hydra-core", "numpy")


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """Fields of run.json that say what is being launched; reads package metadata, imports none of them."""
    return {
        "harness": __version__,
        "git_commit": git_commit(),
        "config_hash": config_hash(config),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "launched": time.time(),
    }


def new_run_id(name: str) -> str:
    """A name for this run that no other run has, also when its folder is copied or made again."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def config_hash(config: dict[str, Any]) -> str:
    """Twelve hex digits that change with any value of the config."""
    return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=6).hexdigest()


def git_commit() -> str:
    """Commit of the code, with `+changes` where the checkout differs from it; "unknown" outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit.stdout.strip() + ("+changes" if status.stdout.strip() else "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
