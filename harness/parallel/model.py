"""What the training step sees of the model, whatever the layout: parameters by name, forward and backward, the loss's sums."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from harness.fp8.weights import Fp8Weights
from harness.model.stage import Stage
from harness.parallel.local import NO_COPIES, Copies

Inputs = dict[str, Any]
"""Keyword arguments of `Stage.forward` for one micro batch, on the device, with the token ids as `x`."""


class ParallelModel(ABC):
    """This rank's stages and how they train together with those of the other ranks."""

    stages: list[Stage]
    fp8: Fp8Weights | None = None
    """The weights that are multiplied in FP8 with scales of their own; `None` where there are none."""
    _began = False

    @cached_property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters that this rank holds a part of, by their names in the whole model.

        Kept from the first look, which must come before training: FSDP2 has others in their place while they are gathered.
        """
        return {name: parameter for stage in self.stages for name, parameter in stage.weights().items()}

    @cached_property
    def counted(self) -> list[nn.Parameter]:
        """The parameters whose gradients count in the global norm: all but copies of another stage's."""
        return list(self.parameters.values())

    @property
    def statistics(self) -> torch.Tensor | None:
        """Sums over the micro batches of the newest pass (`TokenLoss.statistics`); None on ranks without the last stage."""
        loss = self.stages[-1].loss
        return None if loss is None else loss.statistics

    def begin_pass(self) -> None:
        """Forget the sums of the pass before. Before the first pass, when the weights are there, also what `after_update`
        does."""
        if not self._began:
            self._began = True
            self.after_update()
        if (loss := self.stages[-1].loss) is not None:
            loss.reset_statistics()

    @abstractmethod
    def forward_backward(self, micro_batches: Sequence[Inputs], scale: float) -> None:
        """Add up gradients of `scale` x the sum of the losses, and reduce them over the data-parallel ranks."""

    @property
    def copies(self) -> Copies:
        """This rank's parts of the weights that the layers compute with, where those are not the parameters themselves: the
        optimizer writes them too."""
        return NO_COPIES

    def after_update(self) -> None:
        """To be called after each update of the weights and their `copies`."""
        if self.fp8 is not None:
            self.fp8.scale_gathering()

    @abstractmethod
    def evaluate(self, micro_batches: Sequence[Inputs]) -> None:
        """The losses alone, into `statistics`."""

    def reshard(self) -> None:
        """Free the gathered weights, as no backward pass does it after `evaluate`."""
        for stage in self.stages:
            for module in stage.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()


def finish_with_backward(stage: Stage, last: bool) -> None:
    """Let the next backward pass reduce the gradients and free the gathered weights, or neither, where it is not the last."""
    assert isinstance(stage, FSDPModule)
    stage.set_requires_gradient_sync(last)
    stage.set_reshard_after_backward(last)
    stage.set_is_last_backward(last)


class OneStageModel(ParallelModel):
    """The whole model on every rank: data, tensor and context parallel."""

    def __init__(self, stage: Stage, keep_gathered: bool) -> None:
        """With `keep_gathered`, weights stay gathered and gradients unreduced between the micro batches of a step."""
        self.stages = [stage]
        self._keep_gathered = keep_gathered

    def forward_backward(self, micro_batches: Sequence[Inputs], scale: float) -> None:
        self.begin_pass()
        stage = self.stages[0]
        for number, inputs in enumerate(micro_batches, 1):
            if self._keep_gathered:
                finish_with_backward(stage, number == len(micro_batches))
            loss = stage(**inputs)
            (loss.sum() * scale).backward()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Inputs]) -> None:
        self.begin_pass()
        for inputs in micro_batches:
            self.stages[0](**inputs)
        self.reshard()
