"""Products in FP8 against the same in fp32: outputs and gradients agree but for the rounding to FP8."""

from typing import Any

import pytest
import torch
from torch.nn.functional import silu

from harness.fp8.kernels import VALUE, cast_into, scale_for
from harness.fp8.products import gated_product, product

ROUNDING = 0.06
"""Relative error of a product of e4m3 values and e5m2 gradients, as a norm: e5m2 has two bits."""


def weights_of(*matrices: torch.Tensor) -> list[Any]:
    """The matrices in FP8, with one scale, as FSDP2 would hand them over; each takes gradients."""
    from torchao.float8.float8_training_tensor import Float8TrainingTensor

    scale = scale_for(torch.stack([matrix.abs().max() for matrix in matrices]).max(), VALUE)
    found = []
    for matrix in matrices:
        values = torch.empty_like(matrix, dtype=VALUE)
        cast_into(matrix, scale, values)
        found.append(torch.nn.Parameter(Float8TrainingTensor(values, scale, torch.float32, None)))
    return found


def close(found: torch.Tensor, expected: torch.Tensor, roundings: int = 1) -> bool:
    return bool((found - expected).norm() < roundings * ROUNDING * expected.norm())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def test_one_product_for_several_weights() -> None:
    matrices = [torch.randn(out, 64, requires_grad=True) for out in (48, 16, 32)]
    x = torch.randn(2, 32, 64, requires_grad=True)
    upstream = torch.randn(2, 32, 96)
    expected = torch.cat([x @ matrix.t() for matrix in matrices], dim=-1)
    expected_gradients = torch.autograd.grad(expected, [x, *matrices], upstream)
    weights = weights_of(*(matrix.detach() for matrix in matrices))
    found = product(x, *weights)
    assert close(found, expected)
    found.backward(upstream)
    for gradient, wanted in zip([x.grad, *(weight.grad for weight in weights)], expected_gradients, strict=True):
        assert gradient is not None and gradient.shape == wanted.shape and close(gradient, wanted)


def test_a_gated_product_and_all_its_gradients() -> None:
    gate, up = torch.randn(96, 64, requires_grad=True), torch.randn(96, 64, requires_grad=True)
    down = torch.randn(64, 96, requires_grad=True)
    x = (0.3 * torch.randn(48, 64)).requires_grad_()
    upstream = torch.randn(48, 64)
    expected = (silu(x @ gate.t()) * (x @ up.t())) @ down.t()
    expected_gradients = torch.autograd.grad(expected, [x, gate, up, down], upstream)
    pair, single = weights_of(gate.detach(), up.detach()), weights_of(down.detach())
    found = gated_product(x, *pair, *single)
    assert close(found, expected, 2)
    found.backward(upstream)
    gradients = [x.grad, *(weight.grad for weight in (*pair, *single))]
    for gradient, wanted in zip(gradients, expected_gradients, strict=True):
        assert gradient is not None and gradient.shape == wanted.shape and close(gradient, wanted, 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_not_finite(bad: float) -> None:
    (weight,) = weights_of(torch.randn(32, 16))
    x = torch.randn(16, 16)
    x[3, 5] = bad
    assert not product(x, weight).isfinite().all()


def test_zeros_are_zeros() -> None:
    (weight,) = weights_of(torch.randn(32, 16))
    x = torch.zeros(16, 16, requires_grad=True)
    found = product(x, weight)
    assert torch.equal(found, torch.zeros(16, 32))
    found.backward(torch.zeros(16, 32))
    assert x.grad is not None and torch.equal(x.grad, torch.zeros(16, 16))


def test_what_exceeds_the_range_is_saturated() -> None:
    out = torch.empty(2, dtype=VALUE)
    cast_into(torch.tensor([1e6, -1e6]), torch.ones(()), out)
    assert out.float().tolist() == [448.0, -448.0]
