"""Runs for the steps to look at."""

from pathlib import Path
from typing import Any

from harness.plan import make_plan
from harness.preflight.finding import Subject
from tests.tiny import tiny_run


def subject(root: Path, **changes: Any) -> Subject:
    """A small run in `root` with real token files. `changes` as in `tiny_run`."""
    config = tiny_run(root, **changes).load_config()
    config.monitor.targets_dir = str(root / "targets")
    return Subject(config, make_plan(config), ("+exp=tiny",), None)
