"""Exponential moving average of the weights."""

from collections.abc import Mapping

import torch
from torch import nn

from harness.optim.base import constant, zeros_like
from harness.optim.shards import flat
from harness.parallel.local import local


class Ema:
    """fp32 averages, each divided over the ranks like its parameter: costs as much memory as the weights."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        """`decay`: share of the average that stays with each step. Starts at zero: call `reset`, or read a checkpoint.

        Raises ValueError for a decay outside of 0 to 1.
        """
        if not 0 < decay < 1:
            raise ValueError(f"optim.ema_decay={decay}: a number between 0 and 1 (0.999, say), or null for no average")
        self._parameters = dict(parameters)
        self._averages = {name: zeros_like(parameter) for name, parameter in self._parameters.items()}
        device = next((local(p).device for p in self._parameters.values()), torch.device("cpu"))
        self._weight, self._none = constant(1 - decay, device), constant(0.0, device)

    @torch.no_grad()
    def update(self, skip: torch.Tensor) -> None:
        """Take the current parameters in; not where `skip` (0-dim, on their device) isn't 0."""
        weight = torch.where(skip != 0, self._none, self._weight)
        for name, parameter in self._parameters.items():
            flat(self._averages[name]).lerp_(flat(parameter).float(), weight)

    @torch.no_grad()
    def reset(self) -> None:
        """Start over, in place, from the current parameters."""
        for name, parameter in self._parameters.items():
            flat(self._averages[name]).copy_(flat(parameter))

    def state(self) -> dict[str, torch.Tensor]:
        """The live averages by parameter."""
        return dict(self._averages)
