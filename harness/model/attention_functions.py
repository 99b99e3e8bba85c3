"""Attention functions as transformers' layers call them, with and without context parallel."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from harness.model.attention_kernels import Dense, SegmentKernel
from harness.parallel.sequence import gather_sequence

Attend = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]
"""(module, query [batch, heads, tokens, head_dim], key [batch, kv_heads, tokens, head_dim], value, attention_mask,
scaling=..., dropout=..., **inputs) -> (out [batch, tokens, heads, head_dim], None)"""


def register(name: str, attend: Attend) -> str:
    """Make `attend` known to transformers under `name`; layers that use it get no mask but the one they are called with.

    `name` must hold none of the words that transformers gives a meaning to, as 'flash'.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, lambda *args, **kwargs: None)
    return name


def masked(group: dist.ProcessGroup | None) -> Attend:
    """sdpa of this rank's queries with the keys of all ranks of `group`, by the mask that the layers are called with.

    Layers of sliding attention go by `sliding_mask`, if they are called with one."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        sliding_window: int | None = None,
        sliding_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        if group is not None:
            key, value = _gather(key, value, group)
        seen = sliding_mask if sliding_window is not None and sliding_mask is not None else attention_mask
        return sdpa_attention_forward(module, query, key, value, seen, **options)

    return attend


def dense(kernel: Dense) -> Attend:
    """Causal attention over whole sequences."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        scaling: float,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        return kernel(query, key, value, scaling), None

    return attend


def in_segments(kernel: SegmentKernel, chunks: list[int], group: dist.ProcessGroup | None) -> Attend:
    """Attention by offsets that the layers are called with: `cu_q_0` and `cu_k_0` for the first of this rank's `chunks`
    of every sequence, `cu_q_1` and `cu_k_1` for the second. Without a `group`, the only chunk is the whole sequence."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None,
        scaling: float,
        **inputs: Any,
    ) -> tuple[torch.Tensor, None]:
        if group is not None:
            key, value = _gather(key, value, group)
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        parts = query.chunk(len(chunks), dim=1)
        length = parts[0].shape[1]
        outs = []
        for place, (chunk, part) in enumerate(zip(chunks, parts, strict=True)):
            end = (chunk + 1) * length  # later keys are of no use to this chunk
            q, k, v = (t.flatten(0, 1) for t in (part, key[:, :end], value[:, :end]))
            # the longest that a document can be, not the longest there is: a constant does not recompile anything
            out = kernel(q, k, v, inputs[f"cu_q_{place}"], inputs[f"cu_k_{place}"], length, end, scaling)
            outs.append(out.unflatten(0, (-1, length)))
        return torch.cat(outs, dim=1) if group is not None else outs[0], None

    return attend


def _gather(key: torch.Tensor, value: torch.Tensor, group: dist.ProcessGroup) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values of whole sequences, in one collective."""
    keys, values = gather_sequence(torch.cat([key, value]), group).chunk(2)
    return keys, values
