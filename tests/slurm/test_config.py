"""The rendered configuration files; no root needed."""

import re
from pathlib import Path

import pytest

from slurm.devcluster import config
from slurm.devcluster.errors import ClusterError
from slurm.devcluster.layout import Layout, Settings, check_dir, check_empty, load

LAYOUT = Layout(Path("/tmp/c"), 2, Settings(nodes=3, gpus=4, slurmd_timeout=9))


def settings_of(text: str) -> dict[str, str]:
    """Keys and values of a Slurm file, one per line; node and partition lines by their name."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines if not line.startswith(("NodeName", "PartitionName")))


def test_slurm_conf_names_every_node_once_with_its_address() -> None:
    nodes = re.findall(r"^NodeName=(\S+) NodeAddr=(\S+) CPUs=8 .*Gres=gpu:4$", config.slurm_conf(LAYOUT), re.M)
    assert nodes == [("n1", "10.77.2.11"), ("n2", "10.77.2.12"), ("n3", "10.77.2.13")]


def test_slurm_conf_has_the_settings_that_recovery_depends_on() -> None:
    conf = settings_of(config.slurm_conf(LAYOUT))
    assert conf["SlurmctldHost"] == "ctl(10.77.2.2)"
    assert conf["SlurmdTimeout"] == "9"
    assert conf["JobRequeue"] == "1"
    assert conf["ReturnToService"] == "2"
    assert conf["AuthInfo"] == "socket=/tmp/c/munge/socket,cred_expire=5"
    assert conf["AccountingStorageType"] == "accounting_storage/slurmdbd"
    assert "preempt_send_user_signal" in conf["SlurmctldParameters"]


def test_no_key_stands_twice() -> None:
    keys = re.findall(r"^(\w+)=", config.slurm_conf(LAYOUT), re.M)
    single = [key for key in keys if key not in ("NodeName", "PartitionName")]
    assert len(single) == len(set(single))


@pytest.mark.parametrize(("gpus", "files"), [(1, "/tmp/c/gpu/nvidia0"), (8, "/tmp/c/gpu/nvidia[0-7]")])
def test_gres_conf_lists_the_device_files(gpus: int, files: str) -> None:
    layout = Layout(Path("/tmp/c"), 0, Settings(gpus=gpus))
    assert f"Name=gpu File={files}\n" in config.gres_conf(layout)


def test_without_gpus_nothing_speaks_of_them() -> None:
    layout = Layout(Path("/tmp/c"), 0, Settings())
    assert config.gres_conf(layout) == ""
    assert "gpu" not in config.slurm_conf(layout)


def test_hosts_resolve_this_machine_the_controller_and_all_nodes() -> None:
    entries = {line.split()[1]: line.split()[0] for line in config.hosts(LAYOUT).splitlines()}
    assert entries["host"] == "10.77.2.1"
    assert entries["ctl"] == "10.77.2.2"
    assert entries["n3"] == "10.77.2.13"


def test_write_keeps_the_accounting_file_private(tmp_path: Path) -> None:
    config.write(Layout(tmp_path, 0, Settings()))
    assert (tmp_path / "slurmdbd.conf").stat().st_mode & 0o777 == 0o600  # slurmdbd refuses any other
    assert (tmp_path / "slurm.conf").stat().st_mode & 0o004


def test_interface_names_fit_the_kernel() -> None:
    layout = Layout(Path("/tmp/c"), 31, Settings(nodes=200))
    assert all(len(layout.member(name)) <= 15 for name in layout.members)
    assert layout.address("n200") == "10.77.31.210"


def test_layout_is_read_back_as_saved(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 3, Settings(nodes=5, gpus=1))
    layout.save()
    assert load(tmp_path) == layout


@pytest.mark.parametrize("text", ["", "{", "{}", '{"slot": 1, "unknown": 2}'])
def test_foreign_file_of_that_name_is_no_cluster(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.json").write_text(text)
    assert load(tmp_path) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (Settings(nodes=0), r"N \(number of nodes\) is 0; give a number from 1 to 200"),
        (Settings(nodes=201), "from 1 to 200"),
        (Settings(gpus=-1), "--gpus is -1"),
        (Settings(slurmd_timeout=1), "--slurmd-timeout is 1"),
    ],
)
def test_settings_out_of_range_are_named(settings: Settings, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        settings.check()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("/run/x", "hidden inside the nodes"),
        ("/tmp/" + "x" * 90, "80 or less"),
        ("/tmp/a b", "cannot hold"),
        ("/etc/hostname", "is a file"),
    ],
)
def test_folders_that_cannot_hold_a_cluster_are_refused(folder: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        check_dir(Path(folder))


def test_a_site_configuration_folder_is_no_place_for_a_cluster(tmp_path: Path) -> None:
    (tmp_path / "slurm.conf").write_text("ClusterName=precious")
    with pytest.raises(ClusterError, match=r"holds other files \(slurm.conf\)"):
        check_empty(tmp_path)


def test_only_our_own_kept_logs_may_lie_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(ClusterError, match=r"holds other files \(log\)"):
        check_empty(tmp_path)
    (tmp_path / "log" / ".slurm-dev").touch()
    check_empty(tmp_path)
