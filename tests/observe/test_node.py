import os
import time
from pathlib import Path

import pytest

from harness.observe.collector import CollectorDisabled
from harness.observe.node import AgentCostCollector, FilesystemCollector, PressureCollector
from tests.observe.pages import page_of

PRESSURE = "some avg10=0.01 avg60=0.16 avg300=0.12 total={}\nfull avg10=0.01 avg60=0.16 avg300=0.12 total={}\n"


def fake_machine(tmp_path: Path, cgroup: str, *pressured: str) -> PressureCollector:
    """A /proc with host pressure and a cgroup v2 tree with pressure files in the folders named."""
    proc, root = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "pressure").mkdir()
    (proc / "self/cgroup").write_text(cgroup)
    for resource in ("cpu", "memory", "io"):
        (proc / "pressure" / resource).write_text(PRESSURE.format(2_500_000, 1_000_000))
    for number, folder in enumerate(pressured):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for resource in ("cpu", "memory", "io"):
            (root / folder / f"{resource}.pressure").write_text(PRESSURE.format(number * 1_000_000, 0))
    return PressureCollector(proc, [tmp_path / "absent", root])


def test_free_space_is_what_statvfs_says(tmp_path: Path) -> None:
    page = page_of(FilesystemCollector(str(tmp_path)).collect())
    stat = os.statvfs(tmp_path)
    avail = page.get("harness_node_filesystem_avail_bytes", mount=str(tmp_path))
    assert avail == pytest.approx(stat.f_bavail * stat.f_frsize, rel=0.1) and avail > 0
    inodes = page.get("harness_node_filesystem_inodes_free", mount=str(tmp_path))
    assert inodes == pytest.approx(stat.f_favail, rel=0.1)


def test_a_mount_without_an_inode_table_has_no_inode_metric() -> None:
    page = page_of(FilesystemCollector("/proc").collect())
    assert page.series("harness_node_filesystem_avail_bytes") == [{"mount": "/proc"}]
    assert not page.series("harness_node_filesystem_inodes_free")


def test_a_mount_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(FilesystemCollector(str(tmp_path / "gone")).collect())


def test_host_pressure_in_seconds(tmp_path: Path) -> None:
    page = page_of(fake_machine(tmp_path, "0::/\n").collect())
    for resource in ("cpu", "memory", "io"):
        assert page.get("harness_node_pressure_seconds_total", resource=resource, kind="some", scope="host") == 2.5
        assert page.get("harness_node_pressure_seconds_total", resource=resource, kind="full", scope="host") == 1.0
    assert {s["scope"] for s in page.series("harness_node_pressure_seconds_total")} == {"host"}


@pytest.mark.parametrize(
    ("cgroup", "folders", "seconds"),
    [
        # Slurm: all steps of the job, not only the one that this process runs in
        ("0::/slurmd/job_7/step_0/user\n", ["slurmd", "slurmd/job_7", "slurmd/job_7/step_0/user"], 1),
        ("4:memory:/x\n0::/user.slice/session\n", ["user.slice", "user.slice/session"], 1),
    ],
)
def test_job_pressure(tmp_path: Path, cgroup: str, folders: list[str], seconds: int) -> None:
    page = page_of(fake_machine(tmp_path, cgroup, *folders).collect())
    assert page.get("harness_node_pressure_seconds_total", resource="io", kind="some", scope="job") == seconds
    assert page.get("harness_node_pressure_seconds_total", resource="io", kind="some", scope="host") == 2.5


def test_a_resource_without_pressure_is_absent(tmp_path: Path) -> None:
    collector = fake_machine(tmp_path, "0::/\n")
    (tmp_path / "proc/pressure/io").unlink()
    page = page_of(collector.collect())
    assert {s["resource"] for s in page.series("harness_node_pressure_seconds_total")} == {"cpu", "memory"}


def test_no_pressure_at_all_disables(tmp_path: Path) -> None:
    with pytest.raises(CollectorDisabled, match="pressure stall"):
        list(PressureCollector(tmp_path, [tmp_path]).collect())


def test_the_agent_tells_its_own_cost() -> None:
    before = page_of(AgentCostCollector().collect())
    until = time.process_time() + 0.05
    while time.process_time() < until:
        pass
    after = page_of(AgentCostCollector().collect())
    spent = (after.get("harness_agent_cpu_seconds_total") or 0) - (before.get("harness_agent_cpu_seconds_total") or 0)
    assert spent >= 0.04
    assert (after.get("harness_agent_resident_bytes") or 0) > 1e6
