"""The kernels of `harness.fp8.kernels` on CUDA. Imported only where Triton is.

Each transposes one tile, by single bytes, and no more: kernels that transposed several, or packed bytes into words before,
came out of Triton 3.6 with wrong bytes in every fourth row. `harness.fp8.selfcheck` looks for such faults at every start.
"""

# mypy: disable-error-code=no-untyped-def
# Kernels take pointers and compile-time numbers, which have no useful types.

import torch
import triton
import triton.language as tl

ROWS, COLUMNS = 128, 128
"""A tile that is transposed: 128 bytes of FP8 in a row either way, a whole line of the memory."""
WARPS = 8
FLAT = 4096
"""Elements of a block where nothing is transposed."""


def cast(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    count = x.numel()
    _cast[(triton.cdiv(count, FLAT),)](x, scale, out, count, torch.finfo(out.dtype).max, FLAT, num_warps=WARPS)


def cast_both(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, transposed: torch.Tensor) -> None:
    rows, columns = x.shape
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS))
    limit = torch.finfo(out.dtype).max
    _cast_both[grid](x, scale, out, transposed, rows, columns, limit, ROWS, COLUMNS, num_warps=WARPS)


def swiglu_cast(gate_up: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    rows, columns = out.shape
    grid = (triton.cdiv(columns, FLAT // 2), rows)
    _swiglu_cast[grid](gate_up, scale, out, columns, torch.finfo(out.dtype).max, FLAT // 2, num_warps=WARPS)


def swiglu_backward_cast(
    gate_up: torch.Tensor,
    gradient: torch.Tensor,
    gradient_scale: torch.Tensor,
    value_scale: torch.Tensor,
    out: torch.Tensor,
    value_transposed: torch.Tensor,
) -> None:
    rows, columns = gradient.shape
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, ROWS // 2))
    _swiglu_backward_cast[grid](
        gate_up, gradient, gradient_scale, value_scale, out, value_transposed, rows, columns,
        torch.finfo(out.dtype).max, torch.finfo(value_transposed.dtype).max, ROWS // 2, COLUMNS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _round(values, scale, limit, dtype: tl.constexpr):
    return tl.minimum(tl.maximum(values * scale, -limit), limit).to(dtype)


@triton.jit
def _cast(x, scale, out, count, limit, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    tl.store(out + places, _round(values, tl.load(scale), limit, out.dtype.element_ty), inside)


@triton.jit
def _cast_both(x, scale, out, transposed, rows, columns, limit, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    places = row[:, None] * columns + column[None, :]
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    rounded = _round(values, tl.load(scale), limit, out.dtype.element_ty)
    tl.store(out + places, rounded, inside)
    inside_transposed = (column < columns)[:, None] & (row < rows)[None, :]
    tl.store(transposed + column[:, None] * rows + row[None, :], tl.trans(rounded), inside_transposed)


@triton.jit
def _swiglu_cast(gate_up, scale, out, columns, limit, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    begin = gate_up + row * 2 * columns
    gate = tl.load(begin + column, inside, 0.0).to(tl.float32)
    up = tl.load(begin + columns + column, inside, 0.0).to(tl.float32)
    values = gate * tl.sigmoid(gate) * up
    tl.store(out + row * columns + column, _round(values, tl.load(scale), limit, out.dtype.element_ty), inside)


@triton.jit
def _swiglu_backward_cast(
    gate_up, gradient, gradient_scale, value_scale, out, value_transposed, rows, columns,
    gradient_limit, value_limit, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    begin = row[:, None] * 2 * columns + column[None, :]
    gate = tl.load(gate_up + begin, inside, 0.0).to(tl.float32)
    up = tl.load(gate_up + begin + columns, inside, 0.0).to(tl.float32)
    upstream = tl.load(gradient + row[:, None] * columns + column[None, :], inside, 0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    activated = gate * sigmoid
    inside_transposed = (column < columns)[:, None] & (row < rows)[None, :]
    places = column[:, None] * rows + row[None, :]
    value = _round(activated * up, tl.load(value_scale), value_limit, value_transposed.dtype.element_ty)
    tl.store(value_transposed + places, tl.trans(value), inside_transposed)
    scale = tl.load(gradient_scale)
    of_up = _round(upstream * activated, scale, gradient_limit, out.dtype.element_ty)
    tl.store(out + begin + columns, of_up, inside)
    slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
    of_gate = _round(upstream * up * slope, scale, gradient_limit, out.dtype.element_ty)
    tl.store(out + begin, of_gate, inside)
