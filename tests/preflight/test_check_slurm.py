"""What the step says, with a real Slurm and without one."""

import subprocess
from pathlib import Path

import pytest

from harness.config.schema import ClusterKind
from harness.preflight.check_slurm import check_slurm
from harness.preflight.finding import Finding, Status
from tests.preflight.subjects import subject
from tests.slurm_cluster import SlurmCluster


def look(root: Path, **cluster: object) -> Finding:
    made = subject(root / str(len(list(root.iterdir()))))
    made.config.cluster.kind = ClusterKind.slurm
    for key, value in cluster.items():
        setattr(made.config.cluster, key, value)
    return check_slurm(made)


def test_runs_on_this_machine_need_no_slurm(tmp_path: Path) -> None:
    assert check_slurm(subject(tmp_path)).status is Status.skipped


def test_no_slurm_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (failure,) = look(tmp_path).failures
    assert "sbatch is not on PATH" in failure and "cluster=local" in failure


@pytest.mark.slurm
def test_what_a_real_slurm_says(slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(key, slurm_cluster.env[key])
    found = look(tmp_path, nodes=8, time="00:10:00")
    assert found.status is Status.ok, found
    assert "to start at" in found.summary and "on nodes n[1-8]" in found.summary
    queue = subprocess.run(["squeue", "--noheader"], env=slurm_cluster.env, capture_output=True, text=True, check=True)
    assert queue.stdout == "", "nothing is submitted"

    (failure,) = [text for text in look(tmp_path, partition="gpu").failures if "no such partition" in text]
    assert failure.startswith("cluster.partition=gpu: no such partition as gpu; there are ")
    too_many = look(tmp_path, nodes=8, exclude=["n[2-3]"]).failures
    assert "has 6 nodes without the 2 excluded" in too_many[0] and too_many[1].startswith("sbatch --test-only says: ")
    (refused,) = look(tmp_path, nodes=1, cpus_per_node=10_000).failures
    assert refused.startswith("sbatch --test-only says: Requested node configuration is not available. Change cluster.")
    (unknown,) = look(tmp_path, sbatch={"no-such-flag": "1"}).failures
    assert "no-such-flag" in unknown or "no_such_flag" in unknown

    subprocess.run(
        ["scontrol", "update", "nodename=n4", "state=drain", "reason=test"], env=slurm_cluster.env, check=True
    )
    try:
        waiting = look(tmp_path, nodes=8)
    finally:
        slurm_cluster.repair()
    assert any("of the 8 nodes in partition" in text and "(n4 drain" in text for text in waiting.warnings)
