"""Outcomes as people and programs read them."""

import dataclasses
import math
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any

from harness import __version__
from harness.verify.compare import CHECKS, Check
from harness.verify.verify import Outcome


def checks_table(outcome: Outcome) -> str:
    """One line per check of one layout."""
    if outcome.error is not None:
        return f"FAILED: {outcome.error}"
    rows = [("check", "largest relative difference", "tolerance", "", "first that differs")]
    rows += [
        (check.name, _difference(check), _tolerance(check), "ok" if check.passed else "FAILED", check.where or "")
        for check in outcome.checks
    ]
    return _aligned(rows)


def layout_header(width: int) -> str:
    """The line above those of `layout_row`."""
    return f"{'layout':<{width}}  ranks  " + "  ".join(f"{name:>{_column(name)}}" for name in CHECKS)


def layout_row(outcome: Outcome, width: int) -> str:
    """One layout in one line, with what failed below it."""
    start = f"{outcome.case.name:<{width}}  {outcome.case.ranks:>5}  "
    if outcome.impossible is not None:
        return f"{start}not possible: {outcome.impossible}"
    if outcome.error is not None:
        return f"{start}FAILED: {outcome.error}"
    cells = [f"{_difference(check) if check.passed else 'FAILED':>{_column(check.name)}}" for check in outcome.checks]
    failed = [f"{'':<{width}}  {check.name}: {check.where}" for check in outcome.checks if not check.passed]
    return "\n".join([start + "  ".join(cells), *failed])


def as_json(outcomes: Iterable[Outcome], **facts: Any) -> dict[str, Any]:
    """Everything, for `--json`."""
    found = list(outcomes)
    return {
        **facts,
        "passed": all(outcome.passed for outcome in found),
        "layouts": [
            {
                "name": outcome.case.name,
                "ranks": outcome.case.ranks,
                "parallel": dataclasses.asdict(outcome.case.parallel),
                "precision": outcome.precision,
                "passed": outcome.passed,
                "error": outcome.error,
                "impossible": outcome.impossible,
                "checks": [_plain(check) for check in outcome.checks],
            }
            for outcome in found
        ],
        "versions": {
            "harness": __version__, "python": platform.python_version(), "torch": version("torch"),
            "transformers": version("transformers"),
        },
    }  # fmt: skip


def _plain(check: Check) -> dict[str, Any]:
    """JSON knows no NaN: null, as where there is no number."""
    finite = check.difference is not None and math.isfinite(check.difference)
    return {**dataclasses.asdict(check), "difference": check.difference if finite else None}


def _difference(check: Check) -> str:
    if check.difference is None:
        return "equal" if check.passed else "-"
    return f"{check.difference:.1e}" if check.difference else "equal"


def _tolerance(check: Check) -> str:
    return f"{check.tolerance:.0e}" if check.tolerance else "equal"


def _column(name: str) -> int:
    return max(len(name), len("FAILED"))


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
