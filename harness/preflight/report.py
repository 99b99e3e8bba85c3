"""Findings as people and programs read them."""

import socket
import textwrap
import time
from typing import Any

from harness import __version__
from harness.launch.record import git_commit
from harness.preflight.finding import Status
from harness.preflight.steps import STEPS, Result

_NAME = max(len(step.name) for step in STEPS)
_STATUS = max(len(status) for status in Status)
_INDENT = " " * (2 + _NAME + 2)


def beginning(name: str) -> str:
    """What stands on a terminal while a step runs."""
    return f"  {name:<{_NAME}}  ..."


def lines(result: Result, verbose: bool) -> str:
    """One line, below it what to do, and the detail of what failed or, if `verbose`, of every step."""
    finding = result.finding
    text = [f"  {result.step.name:<{_NAME}}  {finding.status:<{_STATUS}}  {result.seconds:6.1f} s  {finding.summary}"]
    for sentence in (*finding.failures, *finding.warnings):
        first, *rest = sentence.splitlines() or [""]
        text += [f"{_INDENT}- {first}", *(f"{_INDENT}  {line}" for line in rest)]
    if finding.detail and (verbose or finding.failures):
        text.append(textwrap.indent(finding.detail.rstrip(), _INDENT + "| ", lambda line: True))
    return "\n".join(text)


def verdict(results: list[Result]) -> str:
    """The last line."""
    by_status = {status: [r.step.name for r in results if r.finding.status is status] for status in Status}
    if failed := by_status[Status.failed]:
        return f"FAILED: {', '.join(failed)}. Do not launch before that is solved"
    if warned := by_status[Status.warning]:
        return f"nothing failed; look at the warnings of {', '.join(warned)}"
    return "nothing failed"


def as_json(results: list[Result], overrides: list[str]) -> dict[str, Any]:
    """Everything, for `--json`."""
    return {
        "passed": passed(results),
        "overrides": overrides,
        "host": socket.gethostname(),
        "time": time.time(),
        "harness": __version__,
        "git_commit": git_commit(),
        "steps": [
            {
                "name": result.step.name,
                "status": result.finding.status,
                "seconds": round(result.seconds, 3),
                "summary": result.finding.summary,
                "failures": result.finding.failures,
                "warnings": result.finding.warnings,
                "facts": result.finding.facts,
            }
            for result in results
        ],
    }


def passed(results: list[Result]) -> bool:
    """Whether nothing failed."""
    return all(result.finding.status is not Status.failed for result in results)
