"""Which parameter is treated how, by its name in the whole model: a pipeline stage's parameters keep theirs."""

import re

from torch import nn

_IN_A_LAYER = re.compile(r"(^|\.)layers\.\d+\.")


def decays(name: str, parameter: nn.Parameter, decay_embeddings: bool) -> bool:
    """Whether weight decay applies: never to norms and biases, to token embeddings (and a head tied to them) on request."""
    return parameter.ndim > 1 and (decay_embeddings or "embed_tokens" not in name.split("."))


def is_layer_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether this is a matrix of one of the transformer's layers; embeddings and head are not."""
    return parameter.ndim == 2 and _IN_A_LAYER.search(name) is not None
