"""What every optimizer offers to the training step and to checkpoints."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from harness.parallel.local import NO_COPIES, Copies, local


class Optimizer(ABC):
    """Updates parameters from their gradients, wholly on the device: nothing here reads a value back to the host.

    A parameter without a gradient stays as it is. Weights are expected in fp32, gradients in fp32 or bf16.
    """

    parameters: dict[str, nn.Parameter]
    """By name, in the model's order; DTensors or plain."""
    state: dict[str, dict[str, torch.Tensor]]
    """By parameter and kind ("exp_avg", ...): fp32, placed and divided like the parameter. Step counts are 0-dim."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self.parameters = dict(parameters)
        self.state = {}
        self.device = next((local(parameter).device for parameter in self.parameters.values()), torch.device("cpu"))

    @torch.no_grad()
    def reset(self) -> None:
        """Set the state to zero in place: whoever holds its tensors, to save them, goes on holding them."""
        for tensors in self.state.values():
            for tensor in tensors.values():
                tensor.zero_()

    @abstractmethod
    def step(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, copies: Copies = NO_COPIES) -> None:
        """Update in place. `lr`, `scale`, `skip`: 0-dim fp32 on the parameters' device.

        Gradients are multiplied by `scale` as they are read, and left as they are. Where `skip` is not 0, neither
        parameters nor state change by a bit, whatever the gradients hold. Collective where parameters are divided.

        `copies`: this rank's parts of some of the parameters by name, in any type, which are to hold the new weights too.
        """


def write_copies(parameters: Mapping[str, nn.Parameter], copies: Copies) -> None:
    """Write what this rank holds of the parameters to their copies."""
    present = [(copies[name], local(parameter)) for name, parameter in parameters.items() if name in copies]
    if present:
        torch._foreach_copy_([copy for copy, _ in present], [part for _, part in present])


def zeros_like(parameter: nn.Parameter) -> torch.Tensor:
    """State for `parameter`: fp32 zeros, divided over the same ranks in the same way."""
    return torch.zeros_like(parameter, dtype=torch.float32, requires_grad=False)


def constant(value: float, device: torch.device) -> torch.Tensor:
    """A number for `for_device`'s kernels: 0-dim fp32 on `device`."""
    return torch.full((), value, dtype=torch.float32, device=device)


def for_device(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """`function`, which works element by element on flat tensors, as one kernel on CUDA and as it stands elsewhere.

    One compilation serves all: sizes are dynamic, and numbers that change go in as 0-dim tensors.
    """
    return _compiled(function) if device.type == "cuda" else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True, fullgraph=True)
