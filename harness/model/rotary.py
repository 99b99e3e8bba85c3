"""Rotary positions whose frequencies are fixed for a run.

transformers chooses those of `dynamic` and `longrope` anew in every forward pass, by the longest sequence in the batch.
Here they are those of a sequence of the run's length throughout: ranks that see different parts of a batch must agree,
and no step may wait for the device to say how long its documents are.
"""

from typing import Any

import torch
from torch import nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

FIXED = "fixed"
"""Takes the place of `rope_type` in the module, which transformers looks at to choose anew."""


def fix_frequencies(rotary: Any, seq_len: int) -> None:
    """Let `rotary`, a rotary embedding of transformers, go by `frequencies` for `seq_len` tokens, whatever it is given.

    Its buffers hold what they held; `harness.model.init.init_buffers` fills them."""
    rotary.seq_len = seq_len
    rotary.rope_type = FIXED


def is_rotary(module: nn.Module) -> bool:
    """Whether `fix_frequencies` has been called for it."""
    return getattr(module, "rope_type", None) == FIXED


def frequencies(rotary: Any, device: torch.device) -> torch.Tensor:
    """The inverse frequencies by transformers' own rules: fp32 [head_dim / 2]."""
    kind = rotary.config.rope_parameters["rope_type"]
    if kind == "default":
        found, _ = rotary.compute_default_rope_parameters(rotary.config)
    else:
        found, _ = ROPE_INIT_FUNCTIONS[kind](rotary.config, device, seq_len=rotary.seq_len)
    return found.to(device)
