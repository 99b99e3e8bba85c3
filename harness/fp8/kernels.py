"""Casting to FP8 in as few passes over memory as there can be.

A product on FP8 units wants both its factors with the summed dimension innermost, so that whatever is used in the forward
and in the backward pass is needed twice: as it is and transposed. Each kernel here writes both in one pass, and where the
values come from a gated activation, computes that on the way instead of reading it. Triton on CUDA, plain torch elsewhere
and for a kernel in which `harness.fp8.selfcheck` has found a fault.
"""

import torch

GRADIENT = torch.float8_e5m2
"""Wide range: gradients."""
VALUE = torch.float8_e4m3fn
"""Fine steps: weights and activations."""
SMALLEST = 1e-12
"""An all-zero tensor is scaled as if this were its largest value."""


PLAIN: set[str] = set()
"""Names of the kernels that plain torch stands in for on CUDA."""


def scale_for(largest: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What a tensor whose largest magnitude is `largest` (0-dim) is multiplied by to fill the range of `dtype`: fp32."""
    return (torch.finfo(dtype).max / largest.double().clamp(min=SMALLEST)).float()


def cast_into(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Write `x * scale`, saturated, to `out`, which is FP8; both contiguous, of one shape. Not for compiled code."""
    if x.device.type != "cuda" or "cast_into" in PLAIN:
        out.copy_(_saturated(x.float() * scale, out.dtype))
        return
    from harness.fp8 import triton_kernels

    triton_kernels.cast(x, scale, out)


def plain_cast_both(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`cast_both` by plain torch, anywhere."""
    rounded = _saturated(x.float() * scale, dtype)
    return rounded, rounded.t().contiguous()


@torch.library.custom_op("harness::fp8_cast_both", mutates_args=())
def cast_both(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x * scale` rounded to FP8, saturated: of x [rows, columns] contiguous, as [rows, columns] and as [columns, rows]."""
    return plain_cast_both(x, scale, dtype)


@cast_both.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_both(x, dtype)


@cast_both.register_kernel("cuda")
def _(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if "cast_both" in PLAIN:
        return plain_cast_both(x, scale, dtype)
    from harness.fp8 import triton_kernels

    out = _empty_both(x, dtype)
    triton_kernels.cast_both(x, scale, *out)
    return out


def plain_swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`swiglu_cast` by plain torch, anywhere."""
    return _saturated(swiglu(gate_up) * scale, VALUE)


@torch.library.custom_op("harness::fp8_swiglu", mutates_args=())
def swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up * scale` rounded to VALUE: gate and up are the halves of [rows, 2 x columns]; [rows, columns]."""
    return plain_swiglu_cast(gate_up, scale)


@swiglu_cast.register_fake
def _(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=VALUE)


@swiglu_cast.register_kernel("cuda")
def _(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    if "swiglu_cast" in PLAIN:
        return plain_swiglu_cast(gate_up, scale)
    from harness.fp8 import triton_kernels

    out = gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=VALUE)
    triton_kernels.swiglu_cast(gate_up, scale, out)
    return out


def plain_swiglu_backward_cast(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """`swiglu_backward_cast` by plain torch, anywhere."""
    rounded = _saturated(swiglu_backward(gate_up, gradient) * gradient_scale, GRADIENT)
    return rounded, _saturated(swiglu(gate_up) * value_scale, VALUE).t().contiguous()


@torch.library.custom_op("harness::fp8_swiglu_backward", mutates_args=())
def swiglu_backward_cast(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """From `gradient` [rows, columns] of `swiglu(gate_up)`: the gradient of `gate_up` in GRADIENT, [rows, 2 x columns], and
    the result of `swiglu` in VALUE, transposed."""
    return plain_swiglu_backward_cast(gate_up, gradient, gradient_scale, value_scale)


@swiglu_backward_cast.register_fake
def _(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_swiglu_backward(gate_up)


@swiglu_backward_cast.register_kernel("cuda")
def _(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    if "swiglu_backward_cast" in PLAIN:
        return plain_swiglu_backward_cast(gate_up, gradient, gradient_scale, value_scale)
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


def _empty_both(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    return x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)


def _empty_swiglu_backward(gate_up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, both = gate_up.shape
    return gate_up.new_empty(rows, both, dtype=GRADIENT), gate_up.new_empty(both // 2, rows, dtype=VALUE)
