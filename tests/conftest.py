"""What all tests share."""

import os
import shutil

import pytest


def require(*commands: str) -> None:
    """Skip the test where one of these commands is missing; fail it under CI or HARNESS_REQUIRE_ALL instead."""
    missing = [command for command in commands if shutil.which(command) is None]
    if not missing:
        return
    reason = f"not installed: {', '.join(missing)}"
    if os.environ.get("CI") or os.environ.get("HARNESS_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)
