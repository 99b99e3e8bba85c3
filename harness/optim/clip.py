"""Norm and clipping of gradients whose parameters live on different meshes, without a word to the host.

Works on the local parts: each rank sums the squares of what it holds, divided by the number of ranks that hold the
same, so that one sum over the ranks gives the global squared norm. The caller adds it to the reduction it does anyway.
"""

from collections.abc import Iterable

import torch
from torch import nn

from harness.optim.shards import copies
from harness.parallel.local import local


def local_square_sum(parameters: Iterable[nn.Parameter], ranks: int) -> torch.Tensor:
    """This rank's share of the squared norm of all gradients: 0-dim fp64 on their device (on the CPU without any).

    `ranks`: how many ranks together hold these parameters; those of one pipeline stage.
    """
    return square_sum([parameter.grad for parameter in parameters if parameter.grad is not None], ranks)


def square_sum(tensors: Iterable[torch.Tensor], ranks: int) -> torch.Tensor:
    """This rank's share of the squared norm of `tensors` together, as in `local_square_sum`."""
    by_copies: dict[int, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_copies.setdefault(copies(tensor, ranks), []).append(local(tensor))
    shares = []
    for number, parts in by_copies.items():
        norms = torch.stack(torch._foreach_norm(parts, 2.0, dtype=torch.float32)).double()
        shares.append((norms * norms).sum() / number)
    return torch.stack(shares).sum() if shares else torch.zeros((), dtype=torch.float64)


def clip_scale(norm: torch.Tensor, limit: float) -> torch.Tensor:
    """What gradients of global norm `norm` are to be multiplied by so that it does not exceed `limit`; 0: no limit.

    0-dim fp32 on `norm`'s device, at most 1.
    """
    if limit <= 0:
        return torch.ones_like(norm, dtype=torch.float32)
    return (limit / (norm + 1e-6)).clamp(max=1.0).float()
