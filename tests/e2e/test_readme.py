"""Every command of the README, run as a stranger would: in order, in a fresh copy of the repository."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.runs import clean_env
from tests.slurm_cluster import require_slurm
from tests.waiting import wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.slurm, pytest.mark.prometheus, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]
RUN_HERE_ALREADY = "make test"
"""This test is part of it."""
STAYS_IN_FOREGROUND = "python -m harness.monitor up"


def commands() -> list[str]:
    """The shell blocks of the README, in order, comments and all."""
    return re.findall(r"^```sh\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files under version control as they are in the working tree, and this environment as its .venv."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def _shell(clone: Path, script: str, timeout: float = 400) -> str:
    """Run it as one shell would, stopping at the first failure; what it printed."""
    env = clean_env({"HARNESS_SLURM_DIR": str(clone / "slurm-state"), "PYTHONPATH": str(clone)})
    # the environment is made already: have make take it as it is, and install nothing into it
    wrapped = f'set -e\nmake() {{ command make -o .venv/.installed "$@"; }}\n{script}'
    result = subprocess.run(["bash", "-c", wrapped], cwd=clone, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, timeout=timeout)  # fmt: skip
    assert result.returncode == 0, f"{script}\n{result.stdout[-6000:]}"
    return result.stdout


def test_every_command_of_the_readme(clone: Path) -> None:
    require_slurm()
    blocks = commands()
    assert len(blocks) >= 8
    printed = []
    for block in blocks:
        lines = [line for line in block.splitlines() if not line.startswith(RUN_HERE_ALREADY)]
        script = "\n".join(lines)
        if STAYS_IN_FOREGROUND in script:
            printed.append(_foreground(clone, script))
        else:
            printed.append(_shell(clone, f"{'' if 'activate' in script else '. .venv/bin/activate'}\n{script}"))
    text = "\n".join(printed)
    assert "run tiny finished: all 120 steps are done" in text, "make demo"
    assert "Dry run: nothing was submitted." in text
    assert "tokens in" in text, "harness.data prepare"
    assert "excluded: n2" in text and "run third finished" in text, "the run on Slurm survived the lost node"
    _check_loss_fell(text)


def _check_loss_fell(text: str) -> None:
    losses = [float(loss) for loss in re.findall(r"^step [\d,]+/120  loss ([\d.]+)", text, flags=re.MULTILINE)]
    assert len(losses) == 120 and losses[-1] < losses[0] - 1.5


def _foreground(clone: Path, script: str) -> str:
    """A command that stays: wait until it says that it is up, then end it with Ctrl-C."""
    env = clean_env({"PYTHONPATH": str(clone), "PATH": f"{clone}/.venv/bin:{os.environ['PATH']}"})
    said = clone / "foreground.log"
    with said.open("w") as log:
        command = ["bash", "-c", f"exec {script.strip()} --port 0"]
        process = subprocess.Popen(command, cwd=clone, env=env, stdout=log, stderr=subprocess.STDOUT)
    wait_for(lambda: "http://127.0.0.1" in said.read_text() or process.poll() is not None, "it says where it is", 90)
    assert process.poll() is None, said.read_text()
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0, said.read_text()
    return said.read_text()
