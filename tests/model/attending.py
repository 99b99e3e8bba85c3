"""What the tests of attention share: packed documents, a kernel in plain torch, and calls as transformers makes them."""

from collections.abc import Sequence
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.model.attention import Attention
from harness.model.attention_kernels import Kernel

HEADS, KV_HEADS, HEAD_DIM = 4, 2, 8
SCALE = 0.3


def positions(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Positions of rows of documents, each given by the documents' lengths: int64 [rows, tokens]."""
    return np.stack([np.concatenate([np.arange(length) for length in lengths]) for lengths in rows])


def true_mask(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Who attends to whom, token by token: bool [rows, tokens, tokens]."""
    masks = []
    for lengths in rows:
        document = np.repeat(np.arange(len(lengths)), lengths)
        masks.append(np.tril(document[:, None] == document[None]))
    return np.stack(masks)


def bottom_right_causal(queries: int, keys: int) -> torch.Tensor:
    """The last query sees the last key."""
    return torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)


def attend_in_segments(
    query: torch.Tensor,  # [tokens, heads, head_dim]
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> torch.Tensor:
    """What a kernel for segments must compute, in differentiable torch; fails where the offsets break its contract."""
    assert cu_q.dtype == cu_k.dtype == torch.int32 and cu_q.shape == cu_k.shape
    assert (cu_q[0], cu_k[0], cu_q[-1], cu_k[-1]) == (0, 0, len(query), len(key))
    pieces = []
    for (q0, q1), (k0, k1) in zip(pairwise(cu_q.tolist()), pairwise(cu_k.tolist()), strict=True):
        assert q1 - q0 <= max_q and k1 - k0 <= max_k
        assert q1 == q0 or k1 - k0 >= q1 - q0
        q, k, v = (t.transpose(0, 1) for t in (query[q0:q1], key[k0:k1], value[k0:k1]))
        seen = bottom_right_causal(q1 - q0, k1 - k0)
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=True)
        pieces.append(out.transpose(0, 1))
    return torch.cat(pieces)


def attend_densely(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


PLAIN = Kernel("harness_plain", attend_densely, attend_in_segments, offsets_multiple=8)


def heads_of(batch: int, tokens: int) -> list[torch.Tensor]:
    """Random query, key and value [batch, heads, tokens, head_dim], laid out as layers lay them out."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(batch, tokens, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, generator=draw).transpose(1, 2) for shape in shapes]


def call(
    attention: Attention, position_ids: np.ndarray, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> torch.Tensor:
    """Attention as a layer calls it; out [batch, tokens, heads, head_dim]."""
    module = SimpleNamespace(num_key_value_groups=query.shape[1] // key.shape[1], is_causal=True)
    inputs = {name: tensor.to(query.device) for name, tensor in attention.inputs(position_ids).items()}
    mask = inputs.pop("attention_mask", None)
    attend = ALL_ATTENTION_FUNCTIONS[attention.name]
    out, _ = attend(module, query, key, value, mask, scaling=SCALE, dropout=0.0, sliding_window=None, **inputs)
    return out


def expected(
    rows: Sequence[Sequence[int]], query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, scale: float = SCALE
) -> torch.Tensor:
    """The same by the true mask."""
    seen = torch.from_numpy(true_mask(rows))[:, None].to(query.device)
    out = scaled_dot_product_attention(query, key, value, attn_mask=seen, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)
