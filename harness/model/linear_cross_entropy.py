"""Output head and cross-entropy in one, without ever holding all logits and without computing any of them twice.

Tokens are scored in chunks. Once a chunk's logits are there, its gradients are as cheap as they will ever be, so the
forward pass computes them too: it turns the logits into their own gradient in place and multiplies that into the
gradients of the hidden states and the weight. The backward pass only scales these two by the gradient of the loss.
"""

from typing import Any

import torch
import torch.distributed as dist

IGNORED = -100
"""Target of a token that has no loss."""


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    z_loss: float = 0.0,
    chunk: int,
    group: dist.ProcessGroup | None = None,
    first_token: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum over the tokens of `cross_entropy(hidden @ weight.T, targets) + z_loss * logsumexp(hidden @ weight.T) ** 2`.

    `hidden`: [tokens, width]. `weight`: [rows, width], of the same dtype, which is that of the logits; what is summed over
    them is summed in fp32. `targets`: int64 [tokens], numbers of vocabulary entries (not checked), or -100 for none.
    `chunk`: tokens scored at a time.

    With `group`, its ranks share the vocabulary: `weight` is this rank's rows of it, the first of which is number
    `first_token`; `hidden`, `targets` and `chunk` are the same on all ranks. All get the same results; the gradient of
    `weight` is that of this rank's rows, but the gradient of `hidden` is only this rank's share, which the caller has to sum
    over the group.

    Returns the loss, a scalar in fp32 that can be differentiated once, and detached statistics, fp32 [4]: sum of the
    cross-entropies (without z_loss), sum of the squares of the logsumexps, largest logit, and number of tokens, all over the
    tokens with a target. Does not synchronise with the device. Raises ValueError for shapes or dtypes that do not fit.
    """
    _check(hidden, weight, targets, chunk)
    if not torch.is_grad_enabled():  # autograd asks for gradients even so
        hidden, weight = hidden.detach(), weight.detach()
    return _LinearCrossEntropy.apply(hidden, weight, targets, z_loss, chunk, group, first_token)


def matmul_into_fp32(out: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`out += a @ b` in the precision of `out` (fp32, or that of `a` and `b`), without copies where the device can."""
    if a.dtype == out.dtype:
        out.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(out, a, b, out.dtype, out=out)
    else:
        out.addmm_(a.to(out.dtype), b.to(out.dtype))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        z_loss: float,
        chunk: int,
        group: dist.ProcessGroup | None,
        first_token: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        for_hidden = torch.empty_like(hidden) if wants_hidden else None
        # stays fp32 until the backward pass scales it, so that it is rounded once
        for_weight = torch.zeros_like(weight, dtype=_sum_dtype(weight)) if wants_weight else None
        sums = []
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = hidden[part] @ weight.T
            sums.append(_whole_sums(logits, targets[part], group, first_token))
            if wants_hidden or wants_weight:
                _to_gradient(logits, sums[-1], targets[part], z_loss, first_token)
            if for_hidden is not None:
                torch.mm(logits, weight, out=for_hidden[part])
            if for_weight is not None:
                matmul_into_fp32(for_weight, logits.T, hidden[part])
            del logits  # or two would exist while the next are computed
        ctx.save_for_backward(for_hidden, for_weight)
        ctx.dtypes = hidden.dtype, weight.dtype
        loss, statistics = _totals(torch.cat(sums, 1), targets, z_loss)
        ctx.mark_non_differentiable(statistics)
        return loss, statistics

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, _: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if torch.is_grad_enabled():  # by create_graph=True
            raise RuntimeError("linear_cross_entropy has no second derivative: use torch.nn.functional.cross_entropy")
        scaled = (
            None if saved is None else _scaled(saved, gradient, dtype)
            for saved, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        )
        return (*scaled, None, None, None, None, None)


def _whole_sums(
    logits: torch.Tensor, targets: torch.Tensor, group: dist.ProcessGroup | None, first_token: int
) -> torch.Tensor:
    """`_sums` over the vocabulary of all ranks."""
    sums = _sums(logits, targets, first_token)
    if group is not None:
        own_largest = sums[0].clone()
        dist.all_reduce(sums[0], dist.ReduceOp.MAX, group)
        sums[1] *= torch.exp(own_largest - sums[0])
        dist.all_reduce(sums[1:], dist.ReduceOp.SUM, group)
    return sums


def _sums(logits: torch.Tensor, targets: torch.Tensor, first_token: int) -> torch.Tensor:
    """What a chunk's loss needs of its logits [tokens, rows], [3, tokens]: the largest, the sum of the exponentials of what
    the others are below it, and the target's (0 where the target is not among these rows)."""
    if kernels := _kernels(logits):
        found: torch.Tensor = kernels.sums(logits, targets, first_token)
        return found
    x = logits.to(_sum_dtype(logits))
    largest = x.amax(1, keepdim=True)
    total = (x - largest).exp().sum(1)
    column = (targets - first_token)[:, None]
    here = (column >= 0) & (column < logits.shape[1])
    at_target = logits.gather(1, column.clamp(0, logits.shape[1] - 1)).to(x.dtype)
    return torch.stack([largest[:, 0], total, torch.where(here, at_target, 0)[:, 0]])


def _to_gradient(
    logits: torch.Tensor, sums: torch.Tensor, targets: torch.Tensor, z_loss: float, first_token: int
) -> None:
    """Overwrite a chunk's logits [tokens, rows] with the gradient of the loss."""
    log_total = _log_total(sums)
    scale = torch.where(targets == IGNORED, 0, 1 + 2 * z_loss * log_total)
    if kernels := _kernels(logits):
        kernels.to_gradient(logits, log_total, scale, targets, first_token)
        return
    gradient = (logits.to(sums.dtype) - log_total[:, None]).exp_().mul_(scale[:, None])
    columns = torch.arange(logits.shape[1], device=logits.device)
    is_target = columns == (targets - first_token)[:, None]
    logits.copy_(torch.where(is_target, gradient - 1, gradient))


def _totals(sums: torch.Tensor, targets: torch.Tensor, z_loss: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss and statistics of all tokens from their `_sums` [3, tokens]."""
    counted = targets != IGNORED
    log_total = _log_total(sums)
    cross_entropy = torch.where(counted, log_total - sums[2], 0).sum()
    squares = torch.where(counted, log_total.square(), 0).sum()
    largest = torch.where(counted, sums[0], -torch.inf).amax()
    statistics = torch.stack([cross_entropy, squares, largest, counted.sum().to(sums.dtype)])
    return cross_entropy + z_loss * squares, statistics


def _log_total(sums: torch.Tensor) -> torch.Tensor:
    """logsumexp of the logits [tokens]."""
    return sums[0] + sums[1].log()


def _scaled(saved: torch.Tensor, gradient: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    # a scalar would be rounded to the dtype of `saved` first; as a matrix it promotes the product to fp32
    return torch.mul(saved, gradient.reshape(1, 1), out=torch.empty_like(saved, dtype=dtype))


def _sum_dtype(tensor: torch.Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _kernels(logits: torch.Tensor) -> Any:
    """The module of kernels for these logits, or None where plain torch has to do."""
    if not logits.is_cuda or logits.dtype == torch.float64:
        return None
    from harness.model import logits_kernels

    return logits_kernels


def _check(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int) -> None:
    shapes = f"hidden {list(hidden.shape)}, weight {list(weight.shape)}, targets {list(targets.shape)}"
    if hidden.ndim != 2 or weight.ndim != 2 or hidden.shape[1] != weight.shape[1] or targets.shape != hidden.shape[:1]:
        raise ValueError(f"{shapes}: must be [tokens, width], [rows, width] and [tokens]")
    if 0 in hidden.shape or 0 in weight.shape:
        raise ValueError(f"{shapes}: must not be empty")
    if hidden.dtype != weight.dtype or not hidden.is_floating_point() or targets.dtype != torch.int64:
        raise ValueError(
            f"hidden is {hidden.dtype}, weight {weight.dtype}, targets {targets.dtype}: the first two must be the same "
            "floating point type and targets int64"
        )
    if chunk < 1:
        raise ValueError(f"chunk={chunk}: must be at least 1 token")
