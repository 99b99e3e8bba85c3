"""Casting to FP8 in as few passes over memory as there can be.

A product on FP8 units wants both its factors with the summed dimension innermost, so that whatever is used in the forward
and in the backward pass is needed twice: as it is and transposed. Each kernel here writes both in one pass, and where the
values come from a gated activation, computes that on the way instead of reading it. Triton on CUDA, plain torch elsewhere.
"""

from typing import Any

import torch

GRADIENT = torch.float8_e5m2
"""Wide range: gradients."""
VALUE = torch.float8_e4m3fn
"""Fine steps: weights and activations."""
SMALLEST = 1e-12
"""An all-zero tensor is scaled as if this were its largest value."""


def scale_for(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a tensor whose largest magnitude is `largest` (0-dim) is multiplied by to fill the range of `dtype`: fp32."""
    return (torch.finfo(dtype).max / largest.double().clamp(min=SMALLEST)).float()


def cast_into(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Write `x * scale`, saturated, to `out`, which is FP8; both contiguous, of one shape. Not for compiled code."""
    if x.device.type != "cuda":
        out.copy_(_saturated(x.float() * scale, out.dtype))
        return
    from harness.fp8 import triton_kernels

    triton_kernels.cast(x, scale, out)


@torch.library.custom_op("harness::fp8_cast_both", mutates_args=())
def cast_both(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x * scale` rounded to FP8, saturated: of x [rows, columns] contiguous, as [rows, columns] and as [columns, rows]."""
    rounded = _saturated(x.float() * scale, dtype)
    return rounded, _transposed(rounded)


@cast_both.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_both(x, x.shape[1], dtype)


@cast_both.register_kernel("cuda")
def _(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    from harness.fp8 import triton_kernels

    out = _empty_both(x, x.shape[1], dtype)
    triton_kernels.cast_both(x, scale, *out)
    return out


@torch.library.custom_op("harness::fp8_swiglu", mutates_args=())
def swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up * scale` rounded to VALUE: gate and up are the halves of [rows, 2 x columns]; [rows, columns]."""
    return _saturated(swiglu(gate_up) * scale, VALUE)


@swiglu_cast.register_fake
def _(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=VALUE)


@swiglu_cast.register_kernel("cuda")
def _(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    from harness.fp8 import triton_kernels

    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=VALUE)
    triton_kernels.swiglu_cast(gate_up, scale, out)
    return out


@torch.library.custom_op("harness::fp8_swiglu_backward", mutates_args=())
def swiglu_backward_cast(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From `gradient` [rows, columns] of `swiglu(gate_up)`: the gradient of `gate_up` in GRADIENT, [rows, 2 x columns] and
    transposed, and the result of `swiglu` in VALUE, transposed."""
    rounded = _saturated(swiglu_backward(gate_up, gradient) * gradient_scale, GRADIENT)
    return rounded, _transposed(rounded), _transposed(_saturated(swiglu(gate_up) * value_scale, VALUE))


@swiglu_backward_cast.register_fake
def _(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _empty_swiglu_backward(gate_up)


@swiglu_backward_cast.register_kernel("cuda")
def _(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from harness.fp8 import triton_kernels

    out = _empty_swiglu_backward(gate_up)
    triton_kernels.swiglu_backward_cast(gate_up, gradient, gradient_scale, value_scale, *out)
    return out


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of the halves of the last dimension, in fp32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def swiglu_backward(gate_up: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `gate_up` from that of `swiglu(gate_up)`, in fp32."""
    return torch.cat(swiglu_gradients(gate_up, gradient), dim=-1)


def swiglu_gradients(gate_up: torch.Tensor, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as two halves."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    gradient = gradient.float()
    sigmoid = torch.sigmoid(gate)
    return gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid


def _saturated(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)


def _transposed(x: torch.Tensor) -> torch.Tensor:
    return x.t().contiguous()


def _empty_both(x: torch.Tensor, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows = x.shape[0]
    return x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)


def _empty_swiglu_backward(gate_up: torch.Tensor) -> tuple[Any, Any, Any]:
    rows, both = gate_up.shape
    return *_empty_both(gate_up, both, GRADIENT), gate_up.new_empty(both // 2, rows, dtype=VALUE)
