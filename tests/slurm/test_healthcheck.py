"""The node health check, with nvidia-smi, dmesg, scontrol, mountpoint and chronyc replaced at the process boundary."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm_cluster import SlurmCluster

SCRIPT = Path(__file__).resolve().parents[2] / "slurm" / "site" / "healthcheck.sh"
HEALTHY_GPUS = """case $1 in
    --query-gpu=*) printf '0, 0\\n1, 0\\n' ;;
    --query-remapped-rows=*) printf '00000000:3B:00.0, No\\n00000000:5E:00.0, No\\n' ;;
esac
"""
SLURM = (
    'case "$*" in *"show node"*) echo "NodeName=n7 Gres=gpu:h100:2(S:0-1) State=IDLE" ;; *) echo "$@" >>"$LOG" ;; esac'
)


class Node:
    """A machine made of stubs: commands on PATH, a config file, and what scontrol was told."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "healthcheck.conf"
        self.log = root / "scontrol.log"
        self.set_command("nvidia-smi", HEALTHY_GPUS)
        self.set_command("dmesg", "true")
        self.set_command("scontrol", SLURM)
        self.set_command("mountpoint", "true")
        self.set_command("chronyc", "echo 0A,a,2,1,0.000011,0,0,0,0,0,0,0,64,Normal")
        self.set_config()

    def set_command(self, name: str, body: str) -> None:
        path = self.root / name
        path.write_text(f"#!/bin/bash\n{body}\n")
        path.chmod(0o755)

    def set_config(self, *lines: str) -> None:
        defaults = ["MEMORY_FREE_GB=0", f"SCRATCH={self.root}", "SCRATCH_FREE_GB=0"]
        self.config.write_text("\n".join([*defaults, *lines]) + "\n")

    def check(self, *args: str) -> subprocess.CompletedProcess[str]:
        env = {"PATH": f"{self.root}:{os.environ['PATH']}", "LOG": str(self.log), "SLURMD_NODENAME": "n7"}
        command = [str(SCRIPT), "--config", str(self.config), *args]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    def told_slurm(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def xid(code: int, seconds_ago: float) -> str:
    now = float(Path("/proc/uptime").read_text().split()[0])
    return f"echo '[{now - seconds_ago:12.6f}] NVRM: Xid (PCI:0000:3b:00): {code}, pid=1, GPU has fallen off the bus.'"


def test_healthy_node_is_left_alone(node: Node) -> None:
    done = node.check()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok    gpus: 2 answer, 2 expected" in done.stdout
    assert "BAD" not in done.stdout
    assert node.told_slurm() == ""


Break = Callable[[Node], None]
BROKEN: dict[str, tuple[Break, str]] = {
    "a GPU is lost": (lambda n: n.set_command("nvidia-smi", "echo 0, 0"), "gpus: 1 of 2 answer"),
    "nvidia-smi fails": (
        lambda n: n.set_command("nvidia-smi", "echo GPU is lost; exit 15"),
        "failed with 15: GPU is lost",
    ),
    "ECC errors": (
        lambda n: n.set_command("nvidia-smi", "printf '0, 0\\n1, 3\\n'"),
        "uncorrected ECC errors (GPU 1: 3)",
    ),
    "remapping failed": (
        lambda n: n.set_command("nvidia-smi", HEALTHY_GPUS.replace("5E:00.0, No", "5E:00.0, Yes")),
        "row remapping failed on 00000000:5E:00.0",
    ),
    "a fatal XID": (lambda n: n.set_command("dmesg", xid(79, 60)), "xid: 79 on PCI:0000:3b:00"),
    "scratch is gone": (lambda n: n.set_command("mountpoint", "exit 1"), "is not mounted"),
    "scratch is full": (lambda n: n.set_config("SCRATCH_FREE_GB=999999999"), "999999999 needed"),
    "memory is gone": (lambda n: n.set_config("MEMORY_TOTAL_GB=999999"), "999999 expected"),
    "memory is used up": (lambda n: n.set_config("MEMORY_FREE_GB=999999"), "999999 needed"),
    "the clock is off": (
        lambda n: n.set_command("chronyc", "echo 0A,a,2,1,-2.5,0,0,0,0,0,0,0,64,Normal"),
        "clock: off by -2.5 s",
    ),
    "the clock runs free": (
        lambda n: n.set_command("chronyc", "echo 7F,,0,0,0,0,0,0,0,0,0,0,0,'Not synchronised'"),
        "chrony is not synchronised",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_unfit_node_is_drained_with_the_reason(node: Node, what: str) -> None:
    breaks, reason = BROKEN[what]
    breaks(node)
    done = node.check()
    assert done.returncode == 1, done.stdout
    assert f"BAD   {reason.split(':')[0]}" in done.stdout or reason in done.stdout
    told = node.told_slurm()
    assert told.startswith("update nodename=n7 state=drain reason=healthcheck: ")
    assert reason in told


def test_dry_run_drains_nothing(node: Node) -> None:
    node.set_command("nvidia-smi", "echo 0, 0")
    done = node.check("--dry-run")
    assert done.returncode == 1
    assert "would drain n7" in done.stdout
    assert node.told_slurm() == ""


def test_all_reasons_are_given_at_once(node: Node) -> None:
    node.set_command("nvidia-smi", "echo 0, 0")
    node.set_command("mountpoint", "exit 1")
    node.check()
    assert "gpus: 1 of 2 answer; scratch:" in node.told_slurm()


def test_reason_of_a_drained_node_stays(node: Node) -> None:
    node.set_command("nvidia-smi", "echo 0, 0")
    node.set_command("scontrol", SLURM.replace("State=IDLE", "State=IDLE+DRAIN Reason=fan"))
    done = node.check()
    assert done.returncode == 1
    assert "drained already" in done.stdout
    assert node.told_slurm() == ""


@pytest.mark.parametrize(("code", "age"), [(79, 7200), (31, 60)])
def test_old_and_harmless_xids_drain_nothing(node: Node, code: int, age: float) -> None:
    node.set_command("dmesg", xid(code, age))
    assert node.check().returncode == 0


def test_node_without_gpus_needs_no_nvidia_smi(node: Node) -> None:
    node.set_config("GPUS=0")
    (node.root / "nvidia-smi").unlink()
    done = node.check()
    assert done.returncode == 0
    assert "none expected" in done.stdout


def test_unreadable_kernel_log_is_said_and_drains_nothing(node: Node) -> None:
    node.set_command("dmesg", "exit 1")
    done = node.check()
    assert done.returncode == 0
    assert "skip  xid: the kernel log is not readable" in done.stdout


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("GPUS=many", "GPUS=many must be auto or a number"),
        ("SCRATCH_FREE_GB=1T", "SCRATCH_FREE_GB=1T must be a whole number"),
        ("SCRATCH=scratch", "SCRATCH=scratch must be an absolute path"),
        ("CLOCK_MAX_OFFSET_S=-1", "CLOCK_MAX_OFFSET_S=-1 must be seconds"),
    ],
)
def test_wrong_config_is_named_and_drains_nothing(node: Node, line: str, message: str) -> None:
    node.set_config(line)
    done = node.check()
    assert done.returncode == 2
    assert message in done.stderr
    assert node.told_slurm() == ""


def test_unknown_argument_is_a_usage_error(node: Node) -> None:
    done = node.check("--drain")
    assert done.returncode == 2
    assert "unknown argument --drain" in done.stderr


def test_shipped_config_is_valid_and_holds_the_defaults() -> None:
    values = [line for line in SCRIPT.with_name("healthcheck.conf").read_text().splitlines() if line[:1].isupper()]
    assert set(values) <= set(SCRIPT.read_text().splitlines())


@pytest.mark.slurm
def test_real_slurm_shows_the_reason(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    config = tmp_path / "healthcheck.conf"
    config.write_text(f"GPUS=0\nMEMORY_TOTAL_GB=999999\nSLURM_CONF={slurm_cluster.conf}\n")
    slurm_cluster.exec("n1", "sh", "-c", f"env -i SLURMD_NODENAME=n1 {SCRIPT} --config {config}; test $? = 1")
    shown = slurm_cluster.exec("n1", "scontrol", "show", "node", "n1").stdout
    slurm_cluster.repair()
    assert "IDLE+DRAIN" in shown
    assert "Reason=healthcheck: memory:" in shown
