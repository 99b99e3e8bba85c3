"""The kernels of `harness.fp8.kernels` on CUDA. Imported only where Triton is. Rows come in multiples of 16.

What is transposed is packed by four rows first: single bytes would take four times the instructions in shared memory, and
ptxas (of Triton 3.6) loses every fourth of them in a kernel that transposes several tiles of e5m2.
"""

# mypy: disable-error-code=no-untyped-def
# Kernels take pointers and compile-time numbers, which have no useful types.

import torch
import triton
import triton.language as tl

COLUMNS = 128
"""Of a tile that is transposed: 128 bytes of FP8, a whole line of the memory."""
QUADS, GATED_QUADS = 32, 16
"""Its rows, by four: four values that follow each other when transposed travel as one word. Gated ones share the registers
between three inputs and five outputs."""
WARPS = 8
FLAT = 4096
"""Elements of a block where nothing is transposed."""


def cast(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    count = x.numel()
    _cast[(triton.cdiv(count, FLAT),)](x, scale, out, count, torch.finfo(out.dtype).max, FLAT, num_warps=WARPS)


def cast_both(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, transposed: torch.Tensor) -> None:
    rows, columns = x.shape
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, 4 * QUADS))
    limit, words = torch.finfo(out.dtype).max, transposed.view(torch.int32)
    _cast_both[grid](x, scale, out, words, rows, columns, limit, QUADS, COLUMNS, num_warps=WARPS)


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
    transposed: torch.Tensor,
    value_transposed: torch.Tensor,
) -> None:
    rows, columns = gradient.shape
    grid = (triton.cdiv(columns, COLUMNS), triton.cdiv(rows, 4 * GATED_QUADS))
    words = transposed.view(torch.int32)
    _swiglu_backward_cast[grid](
        gate_up, gradient, gradient_scale, value_scale, out, words[:columns], words[columns:],
        value_transposed.view(torch.int32), rows, columns, torch.finfo(out.dtype).max,
        torch.finfo(value_transposed.dtype).max, GATED_QUADS, COLUMNS, num_warps=WARPS,
    )  # fmt: skip


@triton.jit
def _round(values, scale, limit, dtype: tl.constexpr):
    return tl.minimum(tl.maximum(values * scale, -limit), limit).to(dtype)


@triton.jit
def _byte(rounded, place: tl.constexpr):
    """FP8 values as one byte each of 32-bit words."""
    return (rounded.to(tl.uint8, bitcast=True).to(tl.uint32) << (8 * place)).to(tl.int32, bitcast=True)


@triton.jit
def _cast(x, scale, out, count, limit, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = places < count
    values = tl.load(x + places, inside, 0.0).to(tl.float32)
    tl.store(out + places, _round(values, tl.load(scale), limit, out.dtype.element_ty), inside)


@triton.jit
def _cast_both(x, scale, out, words, rows, columns, limit, QUADS: tl.constexpr, COLUMNS: tl.constexpr):
    quad = tl.program_id(1).to(tl.int64) * QUADS + tl.arange(0, QUADS)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (4 * quad < rows)[:, None] & (column < columns)[None, :]
    factor = tl.load(scale)
    packed = tl.zeros([QUADS, COLUMNS], tl.int32)
    for row in tl.static_range(4):
        places = (4 * quad + row)[:, None] * columns + column[None, :]
        values = tl.load(x + places, inside, 0.0).to(tl.float32)
        rounded = _round(values, factor, limit, out.dtype.element_ty)
        tl.store(out + places, rounded, inside)
        packed |= _byte(rounded, row)
    inside_transposed = (column < columns)[:, None] & (4 * quad < rows)[None, :]
    tl.store(words + column[:, None] * (rows // 4) + quad[None, :], tl.trans(packed), inside_transposed)


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
    gate_up, gradient, gradient_scale, value_scale, out, gate_words, up_words, value_words, rows, columns,
    gradient_limit, value_limit, QUADS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    quad = tl.program_id(1).to(tl.int64) * QUADS + tl.arange(0, QUADS)
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (4 * quad < rows)[:, None] & (column < columns)[None, :]
    scale, scale_of_value = tl.load(gradient_scale), tl.load(value_scale)
    packed_gate = tl.zeros([QUADS, COLUMNS], tl.int32)
    packed_up = tl.zeros([QUADS, COLUMNS], tl.int32)
    packed_value = tl.zeros([QUADS, COLUMNS], tl.int32)
    for row in tl.static_range(4):
        number = (4 * quad + row)[:, None]
        begin = number * 2 * columns + column[None, :]
        gate = tl.load(gate_up + begin, inside, 0.0).to(tl.float32)
        up = tl.load(gate_up + begin + columns, inside, 0.0).to(tl.float32)
        upstream = tl.load(gradient + number * columns + column[None, :], inside, 0.0).to(tl.float32)
        sigmoid = tl.sigmoid(gate)
        activated = gate * sigmoid
        packed_value |= _byte(_round(activated * up, scale_of_value, value_limit, tl.float8e4nv), row)
        of_up = _round(upstream * activated, scale, gradient_limit, out.dtype.element_ty)
        tl.store(out + begin + columns, of_up, inside)
        packed_up |= _byte(of_up, row)
        slope = sigmoid * (1.0 + gate * (1.0 - sigmoid))
        of_gate = _round(upstream * up * slope, scale, gradient_limit, out.dtype.element_ty)
        tl.store(out + begin, of_gate, inside)
        packed_gate |= _byte(of_gate, row)
    inside_transposed = (column < columns)[:, None] & (4 * quad < rows)[None, :]
    places = column[:, None] * (rows // 4) + quad[None, :]
    tl.store(gate_words + places, tl.trans(packed_gate), inside_transposed)
    tl.store(up_words + places, tl.trans(packed_up), inside_transposed)
    tl.store(value_words + places, tl.trans(packed_value), inside_transposed)
