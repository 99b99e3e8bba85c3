"""What the step makes of how `harness.verify` ends. That it does verify: test_command_line."""

import sys
from pathlib import Path
from typing import Any

import pytest

from harness.config.schema import Precision
from harness.preflight import check_layout as module
from harness.preflight.check_layout import check_layout, verify_command
from harness.preflight.finding import Finding
from harness.run.files import write_json
from harness.verify.compare import Check
from harness.verify.layouts import STANDARD
from harness.verify.table import as_json
from harness.verify.verify import Outcome
from tests.preflight.subjects import subject


def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: dict[str, Any] | None, code: int) -> Finding:
    """With a verification that prints a table, leaves `found` and ends with `code`."""

    def command(made: object, evidence: Path) -> list[str]:
        if found is not None:
            write_json(evidence, found)
        return [sys.executable, "-c", f"import sys; print('the table'); sys.exit({code})"]

    monkeypatch.setattr(module, "verify_command", command)
    return check_layout(subject(tmp_path))


def outcome(**fields: Any) -> dict[str, Any]:
    return as_json([Outcome(STANDARD[2], Precision.fp32, **fields)], run="x", device="cpu")


def test_the_first_tensor_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [Check("loss", 0.0, 1e-5, True, None), Check("gradients", 0.3, 1e-4, False, "model.norm.weight (3.0e-01)")]
    found = look(tmp_path, monkeypatch, outcome(checks=checks), 1)
    (failure,) = found.failures
    assert failure.startswith(
        "dp_shard 2 (fp32): gradients differ from one process: model.norm.weight (3.0e-01); do not"
    )
    assert "differs from one process (fp32, CPU)" in found.summary and found.detail == "the table"


def test_a_layout_whose_ranks_die_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (failure,) = look(tmp_path, monkeypatch, outcome(error="rank 1: exit code 1\nValueError: planted"), 1).failures
    assert "did not get through, so nothing was compared: rank 1: exit code 1\nValueError: planted" in failure


def test_a_verification_that_can_not_be_done_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(tmp_path, monkeypatch, None, 2)
    assert found.summary == "nothing could be verified"
    assert found.failures == ("harness.verify ended with exit code 2: the table",)


def test_the_same_config_is_verified(tmp_path: Path) -> None:
    made = subject(tmp_path)
    command = verify_command(made, tmp_path / "out.json")
    assert command[1:] == ["-m", "harness.verify", "+exp=tiny", "--json", str(tmp_path / "out.json")]
