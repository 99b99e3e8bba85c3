"""What `harness.model.linear_cross_entropy` does with a chunk of logits, in Triton. Imported only for tensors on GPUs.

Each reads the logits once, which is all that it should take: what torch.compile makes of the same formulas takes nearly
twice as long (two exponentials for each logit to find maximum and sum at once, a logarithm for each to turn it around).
"""

# mypy: disable-error-code=no-untyped-def
# Kernels take pointers and compile-time numbers, which have no useful types.

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 8192, 8
"""Logits that a program looks at at a time."""


def sums(logits: torch.Tensor, targets: torch.Tensor, first_token: int) -> torch.Tensor:
    """fp32 [3, tokens] of logits [tokens, rows]: the largest, the sum of the exponentials of what the others are below it,
    and the target's (0 where the target is not among these rows)."""
    tokens, rows = logits.shape
    found = torch.empty(3, tokens, dtype=torch.float32, device=logits.device)
    _sums[(tokens,)](logits, targets, found, tokens, rows, first_token, BLOCK, num_warps=WARPS)
    return found


def to_gradient(
    logits: torch.Tensor, log_total: torch.Tensor, scale: torch.Tensor, targets: torch.Tensor, first_token: int
) -> None:
    """Overwrite logits with `exp(logits - log_total) * scale`, less 1 at the target. `log_total`, `scale`: fp32 [tokens]."""
    tokens, rows = logits.shape
    grid = (tokens, triton.cdiv(rows, BLOCK))
    _to_gradient[grid](logits, log_total, scale, targets, rows, first_token, BLOCK, num_warps=WARPS)


@triton.jit
def _sums(logits, targets, found, tokens, rows, first_token, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    begin = logits + token * rows
    largest = tl.full([], float("-inf"), tl.float32)
    total = tl.full([], 0.0, tl.float32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK)
        x = tl.load(begin + row, row < rows, float("-inf")).to(tl.float32)
        before = largest
        largest = tl.maximum(before, tl.max(x, 0))
        total = total * tl.exp(before - largest) + tl.sum(tl.exp(x - largest), 0)
    target = tl.load(targets + token) - first_token
    here = (target >= 0) & (target < rows)
    at_target = tl.load(begin + target, here, 0.0).to(tl.float32)
    tl.store(found + token, largest)
    tl.store(found + tokens + token, total)
    tl.store(found + 2 * tokens + token, at_target)


@triton.jit
def _to_gradient(logits, log_totals, scales, targets, rows, first_token, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    places = logits + token * rows + row
    x = tl.load(places, row < rows, 0.0).to(tl.float32)
    gradient = tl.exp(x - tl.load(log_totals + token)) * tl.load(scales + token)
    gradient = tl.where(row == tl.load(targets + token) - first_token, gradient - 1.0, gradient)
    tl.store(places, gradient.to(logits.dtype.element_ty), row < rows)
