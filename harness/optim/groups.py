"""AdamW with weight decay only where it belongs."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW

from harness.config.schema import OptimConfig


def build_optimizer(model: nn.Module, config: OptimConfig) -> AdamW:
    """AdamW over `model`'s parameters, its state already made (zeros), so that a checkpoint can be read into it.

    Norms and biases never decay, embeddings only where `config.decay_embeddings`. Parameters on different meshes stand
    in different groups, since the fused update takes one mesh at a time.
    Raises ValueError for another optimizer than adamw.
    """
    if config.name != "adamw":
        raise ValueError(f"optim.name={config.name}: only adamw is supported")
    groups: dict[tuple[bool, object], list[nn.Parameter]] = {}
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for parameter in model.parameters():
        decays = parameter.ndim > 1 and (config.decay_embeddings or id(parameter) not in embeddings)
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups.setdefault((decays, mesh), []).append(parameter)
    optimizer = AdamW(
        [
            {"params": members, "weight_decay": config.weight_decay if decays else 0.0}
            for (decays, _), members in groups.items()
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )
    reset_state(optimizer)
    return optimizer


def reset_state(optimizer: AdamW) -> None:
    """Make the state that AdamW would make at its first step: moments and step counts, all zero.

    State that is there already is zeroed in place: whoever holds its tensors, to save them, goes on holding them.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter in optimizer.state:
                for value in optimizer.state[parameter].values():
                    value.zero_()
                continue
            device = parameter.to_local().device if isinstance(parameter, DTensor) else parameter.device
            optimizer.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
            }


def set_learning_rate(optimizer: AdamW, rate: float) -> None:
    """Use `rate` for every group from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
