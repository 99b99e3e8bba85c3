"""What a step is given, and what it says."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from harness.config.schema import RootConfig
from harness.plan import Plan


class Status(StrEnum):
    """How a step ended, as it is printed."""

    ok = "ok"
    warning = "warning"
    failed = "FAILED"
    skipped = "skipped"
    """There was nothing to look at."""


@dataclass(frozen=True)
class Subject:
    """The run that is looked at."""

    config: RootConfig
    """Checked, with absolute paths."""
    plan: Plan
    overrides: tuple[str, ...]
    """As typed, for a command of its own."""
    config_dir: Path | None


@dataclass(frozen=True)
class Finding:
    """What a step has found."""

    summary: str
    """One line: what was looked at, with figures."""
    failures: tuple[str, ...] = ()
    """Sentences that say what is wrong and what to do: the run would not work."""
    warnings: tuple[str, ...] = ()
    """The run would work; a person should know."""
    detail: str = ""
    """Several lines, shown where the step failed or all is asked for."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Figures for programs, as JSON; sizes in bytes, times in seconds."""
    skipped: bool = False

    @property
    def status(self) -> Status:
        if self.failures:
            return Status.failed
        if self.warnings:
            return Status.warning
        return Status.skipped if self.skipped else Status.ok


def skipped(why: str) -> Finding:
    """There is nothing to look at, and that is as it should be."""
    return Finding(why, skipped=True)
