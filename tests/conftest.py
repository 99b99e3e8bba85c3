"""What all tests share."""

import os
import shutil

import pytest

pytest_plugins = ["tests.slurm_cluster"]


def skip_or_fail(reason: str) -> None:
    """Skip the test; under CI or HARNESS_REQUIRE_ALL, where nothing may be missing, fail it."""
    if os.environ.get("CI") or os.environ.get("HARNESS_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


def require(*commands: str) -> None:
    """Skip the test where one of these commands is missing; fail it under CI or HARNESS_REQUIRE_ALL instead."""
    missing = [command for command in commands if shutil.which(command) is None]
    if missing:
        skip_or_fail(f"not installed: {', '.join(missing)}")
