"""Adam's moments: what AdamW and LAMB share."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import nn

from harness.config.schema import OptimConfig
from harness.optim.base import Optimizer, constant, zeros_like
from harness.optim.rules import decays
from harness.optim.shards import flat


class Numbers(NamedTuple):
    """The numbers of one step, each a 0-dim tensor on the device: fp32, but for `skip`, which is bool."""

    lr: torch.Tensor
    scale: torch.Tensor
    skip: torch.Tensor
    mean_weight: torch.Tensor
    """1 - beta1"""
    square_keep: torch.Tensor
    """beta2"""
    square_weight: torch.Tensor
    """1 - beta2"""
    eps: torch.Tensor
    mean_correction: torch.Tensor
    """1 / (1 - beta1^step)"""
    root_correction: torch.Tensor
    """1 / sqrt(1 - beta2^step)"""


def new_moments(
    gradient: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, numbers: Numbers
) -> tuple[torch.Tensor, torch.Tensor]:
    """The moments after this gradient (fp32 or bf16), as new tensors."""
    scaled = gradient.float() * numbers.scale
    mean = torch.lerp(exp_avg, scaled, numbers.mean_weight)
    return mean, exp_avg_sq * numbers.square_keep + scaled * scaled * numbers.square_weight


def direction(exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, numbers: Numbers) -> torch.Tensor:
    """The bias-corrected mean over the bias-corrected root mean square: of magnitude 1 and less, to be subtracted."""
    root = exp_avg_sq.sqrt() * numbers.root_correction + numbers.eps
    return exp_avg * numbers.mean_correction / root


def keep_where_skipped(skip: torch.Tensor, target: torch.Tensor, value: torch.Tensor) -> None:
    """Write `value` to `target`, or nothing where `skip`: a choice, not a product, so that NaN can't get through."""
    target.copy_(torch.where(skip, target, value))


class Adam(Optimizer):
    """State and numbers of a step. One count of steps serves all parameters: they are updated together or not at all."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        super().__init__(parameters)
        self._betas = config.betas
        self._steps = constant(0.0, self.device)
        self.state = {
            name: {"step": self._steps, "exp_avg": zeros_like(parameter), "exp_avg_sq": zeros_like(parameter)}
            for name, parameter in self.parameters.items()
        }
        beta1, beta2 = config.betas
        self._mean_weight = constant(1 - beta1, self.device)
        self._square_keep, self._square_weight = constant(beta2, self.device), constant(1 - beta2, self.device)
        self._eps = constant(config.eps, self.device)
        decay, none = constant(config.weight_decay, self.device), constant(0.0, self.device)
        self._decay = {
            name: decay if decays(name, parameter, config.decay_embeddings) else none
            for name, parameter in self.parameters.items()
        }

    def _begin(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor) -> Numbers:
        """Count the step, unless it is skipped."""
        skipped = skip != 0
        self._steps += (~skipped).float()
        steps = self._steps.double()  # in fp32, 1 - beta^step would lose digits
        mean, square = (1 / (1 - torch.pow(beta, steps)) for beta in self._betas)
        return Numbers(
            lr=lr,
            scale=scale,
            skip=skipped,
            mean_weight=self._mean_weight,
            square_keep=self._square_keep,
            square_weight=self._square_weight,
            eps=self._eps,
            mean_correction=mean.float(),
            root_correction=square.sqrt().float(),
        )

    def _moments(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """This rank's parts of the two moments, flat."""
        return flat(self.state[name]["exp_avg"]), flat(self.state[name]["exp_avg_sq"])
