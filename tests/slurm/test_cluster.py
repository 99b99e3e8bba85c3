"""The real cluster: up, a node lost and back, down without a trace."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from slurm.devcluster import cgroups, cluster, daemons, network
from slurm.devcluster.layout import Layout, Settings
from tests.slurm.test_dev_command import DEV, dev
from tests.slurm_cluster import SlurmCluster, require_slurm
from tests.waiting import wait_for

pytestmark = pytest.mark.slurm


def traces(folder: Path) -> set[str]:
    """All that a cluster in `folder` could leave behind on this machine."""
    found = set() if network.slot_of(folder) is None else {"bridge"}
    found |= {
        f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line
    }
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            text = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
        except OSError:
            continue  # gone, or a zombie
        if str(folder).encode() in text and int(proc.name) != os.getpid():
            found.add(f"process {proc.name} {text[:80]!r}")
    return found | ({f"folder {folder}"} if folder.exists() else set())


def slot_traces(prefix: str) -> set[str]:
    """Network namespaces, interfaces and cgroups of one slot."""
    root = cgroups.mount_point()
    found = {str(p) for p in network.namespaces(prefix)}
    found |= {p.name for p in network.DEVICES.glob(f"{prefix}*") if re.fullmatch(rf"{prefix}(-.*)?", p.name)}
    return found | ({str(p) for p in root.glob(f"{prefix}-*")} if root else set())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty place for a cluster; taken down at the end whatever happened."""
    require_slurm()
    return tmp_path / "c"


def test_three_nodes_one_lost_and_back_and_nothing_left(folder: Path) -> None:
    done = dev("up", "3", "--gpus", "2", "--dir", str(folder))
    try:
        assert done.returncode == 0, done.stderr
        layout = cluster.get(folder)
        env = daemons.environment(layout)
        names = subprocess.run(
            ["srun", "-N3", "--gpus-per-node=1", "hostname"], env=env, capture_output=True, text=True
        )
        assert sorted(names.stdout.split()) == ["n1", "n2", "n3"], names.stderr

        again = dev("up", "--dir", str(folder))
        assert again.returncode == 1
        assert f"slurm/dev down --dir {folder}" in again.stderr

        assert dev("kill", "n2", "--dir", str(folder)).returncode == 0
        assert dev("pids", "n2", "--dir", str(folder)).stdout == ""
        wait_for(lambda: cluster.node_states(layout)["n2"].startswith("down"), "n2 down")
        assert dev("start", "n2", "--dir", str(folder)).returncode == 0
        cluster.wait_idle(layout, 3)
        assert slot_traces(layout.prefix), "the test looks in the wrong place"
        assert traces(folder), "the test looks in the wrong place"
    finally:
        stopped = dev("down", "--dir", str(folder))
    assert stopped.returncode == 0, stopped.stderr
    assert traces(folder) == set()
    assert slot_traces(layout.prefix) == set()


def test_down_after_everything_was_killed(folder: Path) -> None:
    layout = cluster.up(folder, Settings(nodes=1))
    try:
        for pid in daemons.running(layout).values():
            os.kill(pid, 9)
        subprocess.run(["ip", "link", "del", layout.member("n1")], check=True)
        (folder / "cluster.json").unlink()
    finally:
        assert cluster.down(folder)
    assert traces(folder) == set()
    assert slot_traces(layout.prefix) == set()


@pytest.mark.parametrize("seconds", [0.3, 0.9, 1.6])
def test_down_after_an_up_that_was_killed(folder: Path, seconds: float) -> None:
    up = subprocess.Popen([str(DEV), "up", "2", "--dir", str(folder)], stdout=subprocess.DEVNULL)
    try:
        time.sleep(seconds)  # wherever it is by then
        up.kill()
        up.wait()
        slot = network.slot_of(folder)
    finally:
        dev("down", "--dir", str(folder))
    assert traces(folder) == set()
    if slot is not None:  # None: it was killed before it had made anything
        assert slot_traces(Layout(folder, slot, Settings()).prefix) == set()


def test_a_failed_up_says_why_and_cleans_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_slurm()
    broken = folder.parent / "bin"
    broken.mkdir()
    (broken / "slurmctld").write_text("#!/bin/sh\necho no license today >&2\nexit 1\n")
    (broken / "slurmctld").chmod(0o755)
    done = dev("up", "1", "--dir", str(folder), PATH=f"{broken}:{os.environ['PATH']}")
    assert done.returncode == 1
    assert "slurmctld" in done.stderr
    assert "no license today" in done.stderr
    assert [p.name for p in folder.iterdir()] == ["log"], "a second `up` would be refused"
    assert traces(folder) == {f"folder {folder}"}


def test_unplugged_node_is_down_and_serves_again(slurm_cluster: SlurmCluster) -> None:
    slurm_cluster.unplug("n3")
    wait_for(lambda: slurm_cluster.states()["n3"].startswith("down"), "n3 down")
    assert any("slurmd" in line for line in slurm_cluster.pids("n3").values()), "its processes run on"
    slurm_cluster.repair()
    assert slurm_cluster.states()["n3"] == "idle"


def test_frozen_node_is_down_and_serves_again(slurm_cluster: SlurmCluster) -> None:
    slurm_cluster.freeze("n2")
    wait_for(lambda: slurm_cluster.states()["n2"].startswith("down"), "n2 down")
    slurm_cluster.thaw("n2")
    slurm_cluster.repair()
    assert slurm_cluster.states()["n2"] == "idle"


def test_slurmd_killed_alone_is_started_by_start(slurm_cluster: SlurmCluster) -> None:
    slurm_cluster.kill_slurmd("n4")
    assert not any(line == "slurmd -N n4" for line in slurm_cluster.pids("n4").values())
    slurm_cluster.start("n4")
    wait_for(lambda: slurm_cluster.states()["n4"] == "idle", "n4 idle")


def test_nodes_and_machine_reach_each_other_and_nothing_else(slurm_cluster: SlurmCluster) -> None:
    assert slurm_cluster.exec("n1", "hostname").stdout == "n1\n"
    for name in ("host", "ctl", "n2"):
        answer = slurm_cluster.exec("n1", "getent", "hosts", name).stdout
        assert answer.split()[0] == slurm_cluster.address(name)
    routes = slurm_cluster.exec("n1", "ip", "route").stdout.splitlines()
    assert len(routes) == 1 and "dev eth0 proto kernel" in routes[0]
    assert network.ip("route", "get", slurm_cluster.address("n1")).stdout.startswith(slurm_cluster.address("n1"))


def test_accounting_knows_finished_jobs(slurm_cluster: SlurmCluster) -> None:
    batch = ["sbatch", "--parsable", "--wait", "-N2", "-o", "/dev/null", "--wrap", "srun true"]
    job = subprocess.run(batch, env=slurm_cluster.env, capture_output=True, text=True, check=True).stdout.strip()

    def state() -> str:
        query = ["sacct", "-X", "-n", "-P", "-j", job, "-o", "state"]
        return subprocess.run(query, env=slurm_cluster.env, capture_output=True, text=True).stdout.strip()

    wait_for(lambda: state() == "COMPLETED", f"job {job} completed in sacct")


def test_real_slurm_knows_every_key_of_the_site_snippet(slurm_cluster: SlurmCluster) -> None:
    snippet = (DEV.parent / "site" / "harness.conf").read_text()
    keys = set(re.findall(r"^(\w+)=", snippet, re.M))
    shown = subprocess.run(["scontrol", "show", "config"], env=slurm_cluster.env, capture_output=True, text=True).stdout
    assert keys - set(re.findall(r"^(\w+)\s+=", shown, re.M)) == set()
