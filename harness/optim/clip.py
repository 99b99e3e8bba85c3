"""Norm and clipping of gradients whose parameters live on different meshes.

Works on the local shards: each rank sums the squares of what it holds, divided by the number of ranks that hold the
same, so that one sum over all ranks gives the global squared norm. The caller adds it to the reduction it does anyway.
"""

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def local_square_sum(parameters: Iterable[nn.Parameter], world_size: int) -> torch.Tensor:
    """This rank's share of the squared global gradient norm: fp64 scalar on the gradients' device."""
    by_copies: dict[int, list[torch.Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_copies.setdefault(_copies(parameter.grad, world_size), []).append(_local(parameter.grad))
    total = torch.zeros((), dtype=torch.float64)
    for copies, gradients in by_copies.items():
        norms = torch.stack(torch._foreach_norm(gradients, 2.0)).double()
        total = total.to(norms.device) + (norms * norms).sum() / copies
    return total


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply every gradient by `factor` in place."""
    gradients = [_local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    torch._foreach_mul_(gradients, factor)


def clip_factor(norm: float, limit: float) -> float:
    """What gradients of global norm `norm` are to be multiplied with so that it does not exceed `limit`; 0: no limit."""
    return min(1.0, limit / (norm + 1e-6)) if limit > 0 else 1.0


def _copies(gradient: torch.Tensor, world_size: int) -> int:
    """How many ranks hold the same numbers as this one."""
    if not isinstance(gradient, DTensor):
        return world_size
    parts = 1
    for size, placement in zip(gradient.device_mesh.shape, gradient.placements, strict=True):
        if placement.is_partial():
            raise AssertionError("a gradient was left unreduced")
        if not placement.is_replicate():
            parts *= size
    return world_size // parts


def _local(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_local() if isinstance(gradient, DTensor) else gradient
