"""Has `harness.verify` prove, in small, that the run's layout computes what one process computes."""

import subprocess
import sys
import tempfile
from pathlib import Path

from harness.preflight import process_tree
from harness.preflight.finding import Finding, Subject
from harness.run.files import read_json

UNVERIFIED_LINES = 12
"""Of what it printed are shown where it could not verify."""


def check_layout(subject: Subject) -> Finding:
    """In a process of its own: what goes wrong in torch or on a GPU stays there."""
    with tempfile.TemporaryDirectory(prefix="harness-preflight-") as folder:
        evidence = Path(folder) / "verify.json"
        code, said = _run(verify_command(subject, evidence))
        found = read_json(evidence)
    if found is None:  # it ended before it could say
        return Finding(
            "nothing could be verified",
            failures=(f"harness.verify ended with exit code {code}: " + _last_lines(said),),
            detail=said,
        )
    layouts = found["layouts"]
    where = "GPU" if found["device"] == "cuda" else "CPU"
    precisions = " and ".join(dict.fromkeys(layout["precision"] for layout in layouts))
    name, ranks = layouts[0]["name"], layouts[0]["ranks"]
    wrong = [sentence for layout in layouts for sentence in _failures(layout)]
    equals = "differs from" if wrong else "equals"
    return Finding(
        f"{name} on {ranks} rank{'s' * (ranks > 1)} {equals} one process ({precisions}, {where})",
        failures=tuple(wrong),
        detail=said,
        facts={"verify": found},
    )


def verify_command(subject: Subject, evidence: Path) -> list[str]:
    """What verifies this run and writes `evidence`."""
    own_folder = ["--config-dir", str(subject.config_dir)] if subject.config_dir else []
    return [sys.executable, "-m", "harness.verify", *subject.overrides, *own_folder, "--json", str(evidence)]


def _run(command: list[str]) -> tuple[int, str]:
    """Exit code, and all that was printed. When we are told to end, nothing of it goes on."""
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process_tree.kill(process.pid)
            raise
    return process.returncode, said.strip()


def _failures(layout: dict[str, object]) -> list[str]:
    """One sentence for each check of a layout that did not hold."""
    advice = "do not train in this layout; choose other parallel.* sizes, and report the table"
    if layout["error"]:
        return [
            f"{layout['name']} ({layout['precision']}) did not get through, so nothing was compared: "
            + _last_lines(str(layout["error"]))
        ]
    checks = layout["checks"]
    assert isinstance(checks, list)
    return [
        f"{layout['name']} ({layout['precision']}): {check['name']} differ from one process: {check['where']}; {advice}"
        for check in checks
        if not check["passed"]
    ]


def _last_lines(text: str) -> str:
    return "\n".join(text.splitlines()[-UNVERIFIED_LINES:])
