"""What the step says of GPUs that are missing, sick, different, in use or too small."""

from pathlib import Path

import pynvml
import pytest

from harness.config.schema import ClusterKind
from harness.preflight.check_gpus import check_gpus
from harness.preflight.finding import Finding, Status
from tests.observe.conftest import NvmlState
from tests.preflight.subjects import subject

WELL = "used_mib=600 total_mib=81920"


@pytest.fixture(autouse=True)
def sound_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub's GPUs wait for a reset; these do not."""
    monkeypatch.setattr(pynvml, "nvmlDeviceGetRemappedRows", lambda handle: (0, 0, 0, 0))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)


def look(tmp_path: Path, wanted: int = 2, kind: ClusterKind = ClusterKind.local) -> Finding:
    made = subject(tmp_path)
    made.config.cluster.kind, made.config.cluster.gpus_per_node = kind, wanted
    made.config.train.global_batch_size = 8
    return check_gpus(made)


def test_sound_gpus(nvml: NvmlState, tmp_path: Path) -> None:
    nvml(f"gpu 0 {WELL} throttle=0x5", f"gpu 1 {WELL} corrected=3")  # idle and at the power cap; one corrected error
    found = look(tmp_path)
    assert (found.status, found.summary) == (Status.ok, "2 of 2 GPUs: NVIDIA Stub 80GB")
    assert found.facts["gpus"][0]["total_bytes"] == 81920 << 20


@pytest.mark.parametrize(
    ("sick", "says"),
    [
        ("throttle=0x8", "GPU 1 holds its clocks down (hw_slowdown)"),
        ("throttle=0x20", "GPU 1 holds its clocks down (thermal_sw)"),
        ("throttle=0x40", "GPU 1 holds its clocks down (thermal_hw)"),
        ("throttle=0x80", "GPU 1 holds its clocks down (power_brake)"),
        ("uncorrected=2", "GPU 1 has had 2 uncorrected memory errors"),
        ("used_mib=20000", "GPU 1 has 21.0 GB in use by other processes"),
        ("lost=1", "GPU 1 does not answer"),
    ],
)
def test_a_sick_gpu_fails(sick: str, says: str, nvml: NvmlState, tmp_path: Path) -> None:
    nvml(f"gpu 0 {WELL}", f"gpu 1 {sick} {WELL}")
    assert any(says in failure for failure in look(tmp_path).failures)


@pytest.mark.parametrize(("rows", "says"), [((1, 1, 1, 0), "waits for a reset"), ((1, 1, 0, 1), "have it exchanged")])
def test_bad_memory_rows_fail(
    rows: tuple[int, ...], says: str, nvml: NvmlState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(f"gpu 0 {WELL}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetRemappedRows", lambda handle: rows)
    (failure,) = look(tmp_path, wanted=1).failures
    assert says in failure


def test_an_old_driver_answers_what_it_can(nvml: NvmlState, tmp_path: Path) -> None:
    nvml(f"gpu 0 {WELL} throttle=0x8", driver="old")
    (failure,) = look(tmp_path, wanted=1).failures
    assert "hw_slowdown" in failure


def test_mixed_types_fail(nvml: NvmlState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(f"gpu 0 {WELL}", f"gpu 1 {WELL}")
    names = iter(["NVIDIA H100", "NVIDIA H200"])
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: next(names))
    (failure,) = look(tmp_path).failures
    assert "several types (NVIDIA H100, NVIDIA H200)" in failure


def test_too_few_visible_gpus_fail(nvml: NvmlState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nvml(f"gpu 0 {WELL}", f"gpu 1 {WELL}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    (failure,) = look(tmp_path).failures
    assert failure.startswith("cluster.gpus_per_node=2: this machine shows 1")


def test_a_model_that_may_not_fit_is_a_warning(nvml: NvmlState, tmp_path: Path) -> None:
    nvml("gpu 0 total_mib=1024")
    found = look(tmp_path, wanted=1)
    assert found.status is Status.warning and "parallel.dp_shard" in found.warnings[0]


def test_a_login_node_warns_where_a_node_of_the_job_fails(
    nvml: NvmlState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml(f"gpu 0 {WELL} throttle=0x8")
    assert look(tmp_path, kind=ClusterKind.slurm).status is Status.warning
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert look(tmp_path / "job", kind=ClusterKind.slurm).status is Status.failed


def test_without_gpus(no_nvml: None, tmp_path: Path) -> None:
    login = look(tmp_path, kind=ClusterKind.slurm)
    assert login.status is Status.warning and login.summary.startswith("skipped: no GPU here")
    assert "cluster.gpus_per_node=2: no GPU here" in look(tmp_path / "local").failures[0]
    assert look(tmp_path / "cpu", wanted=0).status is Status.skipped


def test_a_driver_that_does_not_answer_fails(nvml: NvmlState, tmp_path: Path) -> None:
    nvml("driver 0")
    assert "no GPU here" in look(tmp_path).failures[0]
