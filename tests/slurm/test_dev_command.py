"""What `slurm/dev` says where it cannot; no root needed."""

import os
import subprocess
import sys
from pathlib import Path

from tests.slurm_cluster import require_slurm

DEV = Path(__file__).resolve().parents[2] / "slurm" / "dev"


def dev(*args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(DEV), *args], capture_output=True, text=True, env={**os.environ, **variables}
    )


def test_commands_on_a_cluster_that_is_not_up_say_so(tmp_path: Path) -> None:
    done = dev("kill", "n1", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert f"no cluster is up in {tmp_path}" in done.stderr


def test_down_without_a_cluster_is_no_error_and_deletes_nothing(tmp_path: Path) -> None:
    for name in ("slurm.conf", "cluster.json"):
        (tmp_path / name).write_text("mine")
    done = dev("down", HARNESS_SLURM_DIR=str(tmp_path))
    assert done.returncode == 0
    assert "no cluster was up" in done.stdout
    assert (tmp_path / "slurm.conf").read_text() == (tmp_path / "cluster.json").read_text() == "mine"


def test_up_refuses_a_folder_with_other_files(tmp_path: Path) -> None:
    require_slurm()
    (tmp_path / "mine.txt").write_text("mine")
    done = dev("up", "--dir", str(tmp_path))
    assert done.returncode == 1
    assert "mine.txt" in done.stderr


def test_up_names_missing_packages_and_the_fix(tmp_path: Path) -> None:
    # A machine without Slurm: the search path is cut to a folder with nothing in it.
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from devcluster import requirements\n"
        "requirements.SYSTEM_PATH = ''\n"
        "try: requirements.check()\n"
        "except requirements.MissingError as e: print(e); sys.exit(e.exit_code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DEV.parent)],
        capture_output=True, text=True, env={**os.environ, "PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 3
    assert "slurmctld" in done.stdout
    assert "apt-get install" in done.stdout


def test_usage_error_has_its_own_code() -> None:
    assert dev("explode").returncode == 2
