"""A layer's matrix products in FP8, forward and backward.

Weights come as torchao's `Float8TrainingTensor`s: gathered by FSDP2, or cast once per step where they are replicated. Those
that are multiplied together share one scale (`harness.fp8.weights`). Values are e4m3 and gradients e5m2, scaled by their own
largest magnitude; sums are fp32, those of the backward pass in full (the units' fast accumulation loses bits over long sums).
"""

from typing import Any

import torch

from harness.fp8.kernels import (
    GRADIENT,
    VALUE,
    cast_both,
    scale_for,
    swiglu_backward_cast,
    swiglu_backward_largest,
    swiglu_cast,
    swiglu_largest,
)


@torch._dynamo.allow_in_graph
class _Product(torch.autograd.Function):
    """x [tokens, in] by weights [out, in] each, one after the other: [tokens, sum of out]."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, *weights: Any) -> torch.Tensor:
        scale = scale_for(x.abs().amax(), VALUE)
        rounded, transposed = cast_both(x.contiguous(), scale, VALUE)
        ctx.save_for_backward(transposed, scale, *weights)
        return _multiply(rounded, _together(weights), scale, weights[0]._scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x_transposed, x_scale, *weights = ctx.saved_tensors
        scale = scale_for(gradient.abs().amax(), GRADIENT)
        rounded, transposed = cast_both(gradient.contiguous(), scale, GRADIENT)
        of_x = _multiply(rounded, _together(weights).t().contiguous(), scale, weights[0]._scale, gradient.dtype)
        of_weights = _multiply(transposed, x_transposed, scale, x_scale, gradient.dtype)
        return of_x, *_apart(of_weights, weights)


@torch._dynamo.allow_in_graph
class _GatedProduct(torch.autograd.Function):
    """`(silu(x gate^T) * (x up^T)) down^T`: x [tokens, hidden], gate and up [wide, hidden], down [hidden, wide].

    What lies between the products is never written in bf16: it is computed where it is cast, once more in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gate: Any, up: Any, down: Any) -> torch.Tensor:
        x_scale = scale_for(x.abs().amax(), VALUE)
        rounded, x_transposed = cast_both(x.contiguous(), x_scale, VALUE)
        gate_up = _multiply(rounded, _together([gate, up]), x_scale, gate._scale, x.dtype, fast=True)
        scale = scale_for(swiglu_largest(gate_up), VALUE)
        ctx.save_for_backward(x_transposed, x_scale, gate_up, scale, gate, up, down)
        return _multiply(swiglu_cast(gate_up, scale), down._data, scale, down._scale, x.dtype, fast=True)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        x_transposed, x_scale, gate_up, wide_scale, gate, up, down = ctx.saved_tensors
        dtype = gradient.dtype
        scale = scale_for(gradient.abs().amax(), GRADIENT)
        rounded, transposed = cast_both(gradient.contiguous(), scale, GRADIENT)
        of_wide = _multiply(rounded, down._data.t().contiguous(), scale, down._scale, dtype)
        wide_gradient_scale = scale_for(swiglu_backward_largest(gate_up, of_wide), GRADIENT)
        both, both_transposed, wide_transposed = swiglu_backward_cast(gate_up, of_wide, wide_gradient_scale, wide_scale)
        of_down = _multiply(transposed, wide_transposed, scale, wide_scale, dtype)
        weights = _together([gate, up]).t().contiguous()
        of_x = _multiply(both, weights, wide_gradient_scale, gate._scale, dtype)
        of_gate_up = _multiply(both_transposed, x_transposed, wide_gradient_scale, x_scale, dtype)
        return of_x, *_apart(of_gate_up, [gate, up]), of_down


def product(x: torch.Tensor, *weights: Any) -> torch.Tensor:
    """x [..., in] by weights [out, in] each, which share one scale: [..., sum of out]."""
    flat = _Product.apply(x.reshape(-1, x.shape[-1]), *weights)
    return flat.view(*x.shape[:-1], flat.shape[-1])


def gated_product(x: torch.Tensor, gate: Any, up: Any, down: Any) -> torch.Tensor:
    """A SwiGLU layer: x [..., hidden], gate and up [wide, hidden] with one scale, down [hidden, wide]; [..., hidden]."""
    return _GatedProduct.apply(x.reshape(-1, x.shape[-1]), gate, up, down).view(x.shape)


def _together(weights: Any) -> torch.Tensor:
    """The weights' FP8 values as one matrix."""
    return weights[0]._data if len(weights) == 1 else torch.cat([weight._data for weight in weights])


def _apart(gradient: torch.Tensor, weights: Any) -> tuple[torch.Tensor, ...]:
    return gradient.split([weight.shape[0] for weight in weights])


def _multiply(
    left: torch.Tensor,
    right: torch.Tensor,
    left_scale: torch.Tensor,
    right_scale: torch.Tensor,
    dtype: torch.dtype,
    fast: bool = False,
) -> torch.Tensor:
    """left [m, k] by right [n, k], both FP8 and multiplied by their scales, as [m, n] in `dtype`."""
    if left.device.type != "cuda":
        return ((left.float() @ right.float().t()) / (left_scale * right_scale)).to(dtype)
    return torch._scaled_mm(
        left, right.t(), left_scale.reciprocal(), right_scale.reciprocal(), out_dtype=dtype, use_fast_accum=fast
    )
