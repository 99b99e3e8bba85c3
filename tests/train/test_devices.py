import pytest

from harness.config.schema import Precision
from harness.train.devices import gpu_problem

HOPPER, AMPERE = (9, 0), (8, 0)


def test_one_type_of_gpu_is_fine() -> None:
    gpus = [("n1", "NVIDIA H200", HOPPER), ("n1", "NVIDIA H200", HOPPER), ("n2", "NVIDIA H200", HOPPER)]
    assert gpu_problem(Precision.bf16, gpus) is None and gpu_problem(Precision.fp8, gpus) is None


def test_mixed_types_are_named_with_their_nodes() -> None:
    gpus = [("n3", "NVIDIA H200", HOPPER), ("n1", "NVIDIA H100", HOPPER), ("n2", "NVIDIA H200", HOPPER)]
    problem = gpu_problem(Precision.bf16, gpus)
    assert problem is not None and "NVIDIA H100 on n1; NVIDIA H200 on n2, n3" in problem
    assert "cluster.exclude=[NODE,...]" in problem


@pytest.mark.parametrize(("precision", "says"), [(Precision.fp8, True), (Precision.bf16, False)])
def test_fp8_needs_its_units(precision: Precision, says: bool) -> None:
    problem = gpu_problem(precision, [("n1", "NVIDIA A100", AMPERE)])
    assert (problem is not None) is says
    if problem is not None:
        assert "train.precision=fp8: NVIDIA A100 (compute capability 8.0) has no FP8 units; set bf16" in problem
