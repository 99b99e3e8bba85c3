"""What a checkpoint holds: weights and optimizer state as tensors, by name. Nothing else: scalars are in the manifest."""

import torch
from torch import nn
from torch.optim import Optimizer

State = dict[str, torch.Tensor]


def training_state(model: nn.Module, optimizer: Optimizer) -> State:
    """The live tensors, sharded as they are: `model.NAME` and `optim.NAME.{step,exp_avg,exp_avg_sq}`.

    NAME is the parameter's name in `model`; tied weights appear once. Reading into these tensors restores training.
    """
    state: State = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            state[f"optim.{name}.{key}"] = value
    return state


@torch.no_grad()
def copy_to_cpu(state: State) -> State:
    """A copy that training can't change any more. Costs this rank's share of the state in main memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
