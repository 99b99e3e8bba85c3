"""LAMB: AdamW whose step is scaled to each tensor's own norm, for very large batches (You et al., 2020)."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from harness.optim.adam import Adam, Numbers, direction, keep_where_skipped, new_moments
from harness.optim.base import for_device, write_copies
from harness.optim.shards import flat, flat_gradient, sharded_dimensions
from harness.parallel.local import NO_COPIES, Copies


def measure_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    decay: torch.Tensor,
    numbers: Numbers,
) -> torch.Tensor:
    """Update the moments in place; the squared norms of weights and wanted update, fp64 [2]. Tensors as in `adamw_`."""
    mean, square = new_moments(gradient, exp_avg, exp_avg_sq, numbers)
    keep_where_skipped(numbers.skip, exp_avg, mean)
    keep_where_skipped(numbers.skip, exp_avg_sq, square)
    wanted = _wanted(parameter, exp_avg, exp_avg_sq, decay, numbers)
    return torch.stack([parameter.double().square().sum(), wanted.double().square().sum()])


def apply_(
    parameter: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    decay: torch.Tensor,
    ratio: torch.Tensor,
    numbers: Numbers,
) -> None:
    """Take the step, `ratio` (0-dim) times as long as AdamW's, in place."""
    wanted = _wanted(parameter, exp_avg, exp_avg_sq, decay, numbers)
    keep_where_skipped(numbers.skip, parameter, parameter - numbers.lr * ratio * wanted)


def _wanted(
    parameter: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, decay: torch.Tensor, numbers: Numbers
) -> torch.Tensor:
    return direction(exp_avg, exp_avg_sq, numbers) + decay * parameter


class Lamb(Adam):
    """Norms and biases take AdamW's step: their norm says nothing of how far they may move."""

    @torch.no_grad()
    def step(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, copies: Copies = NO_COPIES) -> None:
        if not self.parameters:
            return
        numbers = self._begin(lr, scale, skip)
        measure, apply = for_device(measure_, self.device), for_device(apply_, self.device)
        present = {name: (p, p.grad) for name, p in self.parameters.items() if p.grad is not None}
        squares = {}
        for name, (parameter, gradient) in present.items():
            if (own := flat(parameter)).numel():
                decay = self._decay[name]
                squares[name] = measure(own, flat_gradient(gradient), *self._moments(name), decay, numbers)
            else:  # it adds nothing to the norm, but takes part in the sum over the ranks
                squares[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
        ratios = trust_ratios({name: parameter for name, (parameter, _) in present.items()}, squares)
        for name, (parameter, _) in present.items():
            if (own := flat(parameter)).numel():
                apply(own, *self._moments(name), self._decay[name], ratios[name], numbers)
        write_copies(self.parameters, copies)


def trust_ratios(parameters: dict[str, nn.Parameter], squares: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Norm of the weights over norm of the update, of whole tensors: 0-dim fp32; 1 where either is 0 or ndim < 2.

    `squares`: this rank's shares of the squared norms, fp64 [2] each. They are added up over the ranks that a tensor is
    divided over, in one reduction per kind of division. Collective.
    """
    by_division: dict[tuple[dist.ProcessGroup, ...], list[str]] = {}
    for name, parameter in parameters.items():
        by_division.setdefault(_groups(parameter), []).append(name)
    ratios = {}
    for groups, names in by_division.items():
        sums = torch.stack([squares[name] for name in names])
        for group in groups:
            dist.all_reduce(sums, group=group)
        weights, updates = sums.sqrt().unbind(1)
        usable = (weights > 0) & (updates > 0)
        found = torch.where(usable, weights / updates, torch.ones_like(weights)).float()
        for name, ratio in zip(names, found, strict=True):
            ratios[name] = ratio if parameters[name].ndim > 1 else torch.ones_like(ratio)
    return ratios


def _groups(parameter: nn.Parameter) -> tuple[dist.ProcessGroup, ...]:
    if not isinstance(parameter, DTensor):
        return ()
    return tuple(parameter.device_mesh.get_group(dimension) for dimension in sharded_dimensions(parameter))
