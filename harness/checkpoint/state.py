"""What a checkpoint holds: tensors by name, sharded as they are. Nothing else: scalars are in the manifest."""

from collections.abc import Mapping

import torch
from torch import nn

from harness.parallel.local import plain

State = dict[str, torch.Tensor]

OPTIONAL = ("ema.", "spikes.")
"""State that a run can do without: it begins anew where a checkpoint has none, or one of another size."""


def training_state(
    parameters: Mapping[str, nn.Parameter],
    optimizer: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    ema: Mapping[str, torch.Tensor] | None = None,
    spikes: Mapping[str, torch.Tensor] | None = None,
) -> State:
    """The live tensors: `model.NAME`, `optim.NAME.{step,exp_avg,...}`, `ema.NAME`, `spikes.*`.

    NAME is the parameter's name in the whole model; tied weights appear once. Reading into these tensors restores training.
    """
    state: State = {}
    for name, parameter in parameters.items():
        state[f"model.{name}"] = plain(parameter)
        for key, value in optimizer[name].items():
            state[f"optim.{name}.{key}"] = value
    state |= {f"ema.{name}": average for name, average in (ema or {}).items()}
    state |= {f"spikes.{name}": value for name, value in (spikes or {}).items()}
    return state


@torch.no_grad()
def copy_to_cpu(state: State) -> State:
    """A copy that training can't change any more. Costs this rank's share of the state in main memory."""
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}
