"""The CUDA kernels against plain torch, bit for bit but for the order of a few roundings. Needs a CUDA device."""

import pytest
import torch

from harness.fp8 import kernels
from harness.fp8.kernels import GRADIENT, VALUE
from harness.fp8.selfcheck import faulty_kernels

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [(256, 384), (128, 128), (144, 80), (16, 2064)]
"""Whole tiles, one tile, and parts of tiles."""


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Of one rounding: sums in another order may fall on the other side of a step, seldom."""
    assert found.shape == expected.shape and found.dtype == expected.dtype
    differing = found.float().cpu() != expected.float()
    assert differing.float().mean() < 0.002
    assert (found.float().cpu() - expected.float()).norm() <= 0.01 * expected.float().norm()


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(torch.bfloat16)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [VALUE, GRADIENT])
def test_casts(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, scale = draw(*shape), torch.tensor(100.0)
    expected = kernels.cast_both(x, scale, dtype)
    found = kernels.cast_both(x.cuda(), scale.cuda(), dtype)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("shape", [*SHAPES, (171, 2048), (0, 2048)])
def test_cast_of_weights(shape: tuple[int, int]) -> None:
    x, scale = draw(*shape).float() / 3, torch.tensor(100.0)
    expected, out = torch.empty(shape, dtype=VALUE), torch.empty(shape, dtype=VALUE, device="cuda")
    kernels.cast_into(x, scale, expected)
    kernels.cast_into(x.cuda(), scale.cuda(), out)
    assert torch.equal(out.cpu().view(torch.uint8), expected.view(torch.uint8))


def test_casts_saturate_and_keep_nan() -> None:
    x = torch.full((16, 16), 1e30, dtype=torch.bfloat16)
    x[0, :3] = torch.tensor([-1e30, float("nan"), float("-inf")])
    for dtype in (VALUE, GRADIENT):
        expected = kernels.cast_both(x, torch.tensor(1.0), dtype)
        found = kernels.cast_both(x.cuda(), torch.tensor(1.0).cuda(), dtype)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.cpu().float().nan_to_num(0.25), other.float().nan_to_num(0.25))


@pytest.mark.parametrize("shape", SHAPES)
def test_largest_values(shape: tuple[int, int]) -> None:
    rows, columns = shape
    gate_up, gradient = draw(rows, 2 * columns), draw(rows, columns)
    found = kernels.swiglu_largest(gate_up.cuda()).item()
    assert found == pytest.approx(kernels.swiglu_largest(gate_up).item(), rel=1e-4)
    found = kernels.swiglu_backward_largest(gate_up.cuda(), gradient.cuda()).item()
    assert found == pytest.approx(kernels.swiglu_backward_largest(gate_up, gradient).item(), rel=1e-4)
    gate_up[-1, -1] = float("nan")
    assert kernels.swiglu_largest(gate_up.cuda()).isnan()
    assert kernels.swiglu_backward_largest(gate_up.cuda(), gradient.cuda()).isnan()


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu(shape: tuple[int, int]) -> None:
    rows, columns = shape
    gate_up, scale = draw(rows, 2 * columns), torch.tensor(30.0)
    same(kernels.swiglu_cast(gate_up.cuda(), scale.cuda()), kernels.swiglu_cast(gate_up, scale))


@pytest.mark.parametrize("shape", SHAPES)
def test_swiglu_backward(shape: tuple[int, int]) -> None:
    rows, columns = shape
    gate_up, gradient = draw(rows, 2 * columns), draw(rows, columns)
    scales = torch.tensor(1000.0), torch.tensor(30.0)
    expected = kernels.swiglu_backward_cast(gate_up, gradient, *scales)
    found = kernels.swiglu_backward_cast(gate_up.cuda(), gradient.cuda(), *(scale.cuda() for scale in scales))
    for one, other in zip(found, expected, strict=True):
        same(one, other)


def test_the_check_at_start_finds_nothing() -> None:
    assert faulty_kernels(torch.device("cuda")) == []
