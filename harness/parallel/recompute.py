"""What the backward pass computes again instead of keeping it (activation checkpointing)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from harness.config.schema import ActivationCheckpoint

ATTENTION_OPS = (
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
)
"""Attention costs much to compute again and little to keep; so does whatever this project registers itself, see `OWN`."""
OWN = "harness::"
COMMUNICATION = "_c10d_functional::"


def recomputed(forward: Callable[..., Any], mode: ActivationCheckpoint) -> Callable[..., Any]:
    """`forward` of a layer with the recomputation that `mode` asks for."""
    if mode is ActivationCheckpoint.none:
        return forward
    if mode is ActivationCheckpoint.full:
        return partial(checkpoint, forward, use_reentrant=False)
    assert mode is ActivationCheckpoint.selective, "auto is resolved before the model is built"
    return partial(checkpoint, forward, use_reentrant=False, context_fn=_selective)


def _selective() -> Any:
    """Keep the results of attention, of communication and of every second matrix product."""
    products = {False: 0, True: 0}

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = getattr(op, "name", lambda: "")()
        if op is torch.ops.aten.mm.default:
            products[context.is_recompute] += 1
            keep = products[context.is_recompute] % 2 == 1
        else:
            keep = name.startswith((*ATTENTION_OPS, OWN, COMMUNICATION))
        return CheckpointPolicy.MUST_SAVE if keep else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
