"""Casting to FP8 in as few passes over memory as there can be.

A product on FP8 units wants both its factors with the summed dimension innermost, so that whatever is used in the forward
and in the backward pass is needed twice: as it is and transposed. Kernels here write both in one pass, and where the values
come from a gated activation, compute that on the way instead of reading it. CUDA's own (`harness.fp8.cuda_kernels`) on GPUs;
plain torch elsewhere, and for a kernel in which `harness.fp8.selfcheck` has found a fault.
"""

from typing import Any

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


# --- weights and activations as they are -----------------------------------------------------------------------------


def cast_into(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Write fp32 `x * scale`, saturated, to `out`, which is VALUE; both contiguous, of one shape. Not for compiled code."""
    if (cuda := _on_cuda("cast_into", x)) is None:
        out.copy_(_saturated(x.float() * scale, out.dtype))
    else:
        cuda.cast(x, scale, out)


def plain_cast_both(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`cast_both` by plain torch, anywhere."""
    rounded = _saturated(x.float() * scale, dtype)
    return rounded, rounded.t().contiguous()


@torch.library.custom_op("harness::fp8_cast_both", mutates_args=())
def cast_both(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """`x * scale` rounded to FP8, saturated: of x [rows, columns] contiguous, as [rows, columns] and as [columns, rows]."""
    if (cuda := _on_cuda("cast_both", x)) is None:
        return plain_cast_both(x, scale, dtype)
    out = _empty_both(x, dtype)
    cuda.cast_both(x, scale, *out)
    return out


@cast_both.register_fake
def _(x: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return _empty_both(x, dtype)


# --- what goes through a gated activation ----------------------------------------------------------------------------


def plain_swiglu_largest(gate_up: torch.Tensor) -> torch.Tensor:
    """`swiglu_largest` by plain torch, anywhere."""
    return swiglu(gate_up).abs().amax()


@torch.library.custom_op("harness::fp8_swiglu_largest", mutates_args=())
def swiglu_largest(gate_up: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of `swiglu(gate_up)`: fp32, 0-dim."""
    if (cuda := _on_cuda("swiglu_largest", gate_up)) is None:
        return plain_swiglu_largest(gate_up)
    largest = gate_up.new_zeros((), dtype=torch.float32)
    cuda.swiglu_largest(gate_up, largest)
    return largest


@swiglu_largest.register_fake
def _(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty((), dtype=torch.float32)


def plain_swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`swiglu_cast` by plain torch, anywhere."""
    return _saturated(swiglu(gate_up) * scale, VALUE)


@torch.library.custom_op("harness::fp8_swiglu", mutates_args=())
def swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up * scale` rounded to VALUE: gate and up are the halves of [rows, 2 x columns]; [rows, columns]."""
    if (cuda := _on_cuda("swiglu_cast", gate_up)) is None:
        return plain_swiglu_cast(gate_up, scale)
    out = _empty_swiglu(gate_up)
    cuda.swiglu_cast(gate_up, scale, out)
    return out


@swiglu_cast.register_fake
def _(gate_up: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return _empty_swiglu(gate_up)


def plain_swiglu_backward_largest(gate_up: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """`swiglu_backward_largest` by plain torch, anywhere."""
    return swiglu_backward(gate_up, gradient).abs().amax()


@torch.library.custom_op("harness::fp8_swiglu_backward_largest", mutates_args=())
def swiglu_backward_largest(gate_up: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The largest magnitude of the gradient of `gate_up`, from `gradient` [rows, columns] of `swiglu(gate_up)`: fp32, 0-dim."""
    if (cuda := _on_cuda("swiglu_backward_largest", gate_up)) is None:
        return plain_swiglu_backward_largest(gate_up, gradient)
    largest = gate_up.new_zeros((), dtype=torch.float32)
    cuda.swiglu_backward_largest(gate_up, gradient, largest)
    return largest


@swiglu_backward_largest.register_fake
def _(gate_up: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty((), dtype=torch.float32)


SwigluBackward = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def plain_swiglu_backward_cast(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> SwigluBackward:
    """`swiglu_backward_cast` by plain torch, anywhere."""
    rounded = _saturated(swiglu_backward(gate_up, gradient) * gradient_scale, GRADIENT)
    values = _saturated(swiglu(gate_up) * value_scale, VALUE)
    return rounded, rounded.t().contiguous(), values.t().contiguous()


@torch.library.custom_op("harness::fp8_swiglu_backward", mutates_args=())
def swiglu_backward_cast(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> SwigluBackward:
    """From `gradient` [rows, columns] of `swiglu(gate_up)`: the gradient of `gate_up` in GRADIENT, [rows, 2 x columns], and
    transposed, [2 x columns, rows], and the result of `swiglu` in VALUE, transposed, [columns, rows]."""
    if (cuda := _on_cuda("swiglu_backward_cast", gate_up)) is None:
        return plain_swiglu_backward_cast(gate_up, gradient, gradient_scale, value_scale)
    out = _empty_swiglu_backward(gate_up)
    cuda.swiglu_backward_cast(gate_up, gradient, gradient_scale, value_scale, *out)
    return out


@swiglu_backward_cast.register_fake
def _(
    gate_up: torch.Tensor, gradient: torch.Tensor, gradient_scale: torch.Tensor, value_scale: torch.Tensor
) -> SwigluBackward:
    return _empty_swiglu_backward(gate_up)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """`silu(gate) * up` of the halves of the last dimension, in fp32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def swiglu_backward(gate_up: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The gradient of `gate_up` from that of `swiglu(gate_up)`, in fp32."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    gradient = gradient.float()
    sigmoid = torch.sigmoid(gate)
    return torch.cat([gradient * up * sigmoid * (1 + gate * (1 - sigmoid)), gradient * gate * sigmoid], dim=-1)


# --- common ----------------------------------------------------------------------------------------------------------


def _on_cuda(kernel: str, x: torch.Tensor) -> Any:
    """The module that has the kernel, or None where plain torch has to do."""
    if x.device.type != "cuda" or kernel in PLAIN:
        return None
    from harness.fp8 import cuda_kernels

    return cuda_kernels


def _saturated(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    limit = torch.finfo(dtype).max
    return values.clamp(-limit, limit).to(dtype)


def _empty_both(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = x.shape
    return x.new_empty(rows, columns, dtype=dtype), x.new_empty(columns, rows, dtype=dtype)


def _empty_swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty(gate_up.shape[0], gate_up.shape[1] // 2, dtype=VALUE)


def _empty_swiglu_backward(gate_up: torch.Tensor) -> SwigluBackward:
    rows, both = gate_up.shape
    return *_empty_both(gate_up, GRADIENT), gate_up.new_empty(both // 2, rows, dtype=VALUE)
