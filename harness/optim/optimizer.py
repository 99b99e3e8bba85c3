"""The optimizer that a config names."""

from collections.abc import Mapping

from torch import nn

from harness.config.schema import OptimConfig
from harness.optim.adamw import AdamW
from harness.optim.base import Optimizer
from harness.optim.lamb import Lamb
from harness.optim.muon import Muon

__all__ = ["OPTIMIZERS", "Optimizer", "build_optimizer"]

OPTIMIZERS: dict[str, type[AdamW] | type[Lamb] | type[Muon]] = {"adamw": AdamW, "muon": Muon, "lamb": Lamb}


def build_optimizer(parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> Optimizer:
    """The optimizer `config.name` over `parameters`, its state made (zeros), so that a checkpoint can be read into it.

    `parameters`: by their names in the whole model, in memory already (their values may still change). Norms and biases
    never decay, embeddings only where `config.decay_embeddings`. Raises ValueError for an unknown name.
    """
    if config.name not in OPTIMIZERS:
        raise ValueError(f"optim.name={config.name}: choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[config.name](parameters, config)
