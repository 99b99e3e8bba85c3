"""Norms of gradients and weights by part of the network, for the slow cadence."""

import re
from collections.abc import Mapping

import torch
from torch import nn

from harness.optim.clip import square_sum

_LAYER = re.compile(r"(?:^|\.)(layers\.\d+)\.(.+)")
_KINDS_IN_A_LAYER = (("norm", "norms"), ("attn", "attention"), ("mlp", "mlp"))  # a norm inside attention is a norm
_KINDS = (("embed_tokens", "embedding"), ("lm_head", "head"), ("norm", "norm"))


@torch.no_grad()
def module_statistics(parameters: Mapping[str, nn.Parameter], ranks: int) -> tuple[list[str], torch.Tensor]:
    """Groups of parameters, and this rank's shares of their squared norms: fp64 [groups, 2] on the parameters' device.

    Columns: gradients, weights. `parameters`: by their names in the whole model; `ranks`: how many ranks together hold
    them. A sum over those ranks gives the squares of the global norms. The groups are the same on all of them.
    """
    members: dict[str, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault(group_of(name), []).append(parameter)
    if not members:
        return [], torch.zeros(0, 2, dtype=torch.float64)
    rows = []
    for group in members.values():
        weights = square_sum(group, ranks)
        gradients = [parameter.grad for parameter in group if parameter.grad is not None]
        rows.append(torch.stack([square_sum(gradients, ranks) if gradients else torch.zeros_like(weights), weights]))
    return list(members), torch.stack(rows)


def group_of(name: str) -> str:
    """What a parameter belongs to: embedding, head, norm (the last), layers.N.{attention,mlp,norms}, or "other"."""
    found = _LAYER.search(name)
    prefix, rest, kinds = (f"{found[1]}.", found[2], _KINDS_IN_A_LAYER) if found else ("", name, _KINDS)
    return prefix + next((kind for part, kind in kinds if part in rest), "other")
