"""Attention that does not cross documents.

Positions restart at every document, and that alone marks its boundaries. On CPU (and where the fast kernel can't be
had) transformers derives a block-diagonal causal mask from them for sdpa. On CUDA each document becomes a sequence of
its own for flash attention's variable-length kernel, and no mask is made at all.
"""

import inspect
from typing import Any

import numpy as np
import torch
from torch import nn

VARLEN = "harness_varlen"


def choose_attention(device: torch.device, dtype: torch.dtype, document_mask: bool) -> tuple[str, str | None]:
    """Name of the attention implementation, registered with transformers, and a remark where it is not the fastest."""
    if device.type != "cuda" or not document_mask:
        return "sdpa", None
    if dtype not in (torch.bfloat16, torch.float16):
        return "sdpa", f"attention: sdpa with a mask; the variable-length kernel needs bf16, not {dtype}"
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return "sdpa", f"attention: sdpa with a mask; torch {torch.__version__} has no variable-length kernel"
    _register(varlen_attn)
    return VARLEN, None


def document_bounds(position_ids: np.ndarray) -> np.ndarray:
    """Offsets at which documents start in the flattened micro batch, and its length: int32 [documents + 1].

    `position_ids` is [batch, seq_len] and 0 at the first token of every document.
    """
    starts = np.flatnonzero(position_ids.reshape(-1) == 0)
    return np.append(starts, position_ids.size).astype(np.int32)


def _register(varlen_attn: Any) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    known = inspect.signature(varlen_attn).parameters
    causal = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    native_gqa = "enable_gqa" in known
    scalable = "scale" in known  # where it is not, the kernel scales as our models do: by 1/sqrt(head_dim)

    def attend(
        module: nn.Module,
        query: torch.Tensor,  # [batch, heads, seq_len, head_dim]
        key: torch.Tensor,  # [batch, kv_heads, seq_len, head_dim]
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int = 0,
        **unused: Any,
    ) -> tuple[torch.Tensor, None]:
        batch, heads, seq_len, head_dim = query.shape
        groups = heads // key.shape[1]
        options: dict[str, Any] = {"scale": scaling} if scalable else {}
        if groups > 1 and native_gqa:
            options["enable_gqa"] = True
        elif groups > 1:
            key, value = (t.repeat_interleave(groups, dim=1) for t in (key, value))
        flat = [t.transpose(1, 2).reshape(batch * seq_len, t.shape[1], head_dim) for t in (query, key, value)]
        out = varlen_attn(*flat, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, **causal, **options)
        return out.view(batch, seq_len, heads, head_dim), None

    AttentionInterface.register(VARLEN, attend)
    AttentionMaskInterface.register(VARLEN, lambda *args, **kwargs: None)
