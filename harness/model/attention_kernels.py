"""The attention kernels of the GPU behind one interface.

Dense kernels take [batch, heads, seq, head_dim] and are causal. Segment kernels take flattened tokens [tokens, heads,
head_dim] and offsets of runs of queries and keys (`harness.model.attention_segments`), each run causal by itself. All
give the heads of one key to several queries (GQA). Kernels from outside torch are wrapped in custom ops, which
torch.compile takes as they are.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

Dense = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, float], torch.Tensor]
"""(query, key, value, scale) -> out [batch, seq, heads, head_dim]"""

SegmentKernel = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int, int, float], torch.Tensor
]
"""(query, key, value, query offsets, key offsets, most queries, most keys, scale) -> out [tokens, heads, head_dim]"""


@dataclass(frozen=True)
class Kernel:
    """One implementation of attention."""

    name: str
    """What its attention functions are registered under: transformers reads a meaning into 'flash' and 'sdpa'."""
    dense: Dense
    segments: SegmentKernel | None
    """None where it can\'t do them at a useful speed."""
    offsets_multiple: int
    """Segment offsets are padded to a multiple of this many with empty segments; 1: never."""


# --- torch's own flash attention -------------------------------------------------------------------------------------


def _flash_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return _sdpa(SDPBackend.FLASH_ATTENTION, query, key, value, scale)


def _flash_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> torch.Tensor:
    options: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in _VARLEN_OPTIONS else {"is_causal": True}
    if "scale" in _VARLEN_OPTIONS:  # where it is not, the kernel scales as our models do: by 1/sqrt(head_dim)
        options["scale"] = scale
    if query.shape[1] != key.shape[1]:
        if "enable_gqa" in _VARLEN_OPTIONS:
            options["enable_gqa"] = True
        else:
            key, value = _repeat_heads(query, key, value)
    return _VARLEN(query, key, value, cu_q, cu_k, max_q, max_k, **options)


def _load_varlen() -> Any:
    """torch's flash kernel for variable lengths, or None where this torch has none."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn


_VARLEN = _load_varlen()
_VARLEN_OPTIONS = frozenset(inspect.signature(_VARLEN).parameters if _VARLEN else ())
"""What it can be told; that changes from version to version."""


def has_varlen() -> bool:
    """Whether this torch has a flash kernel for segments."""
    return _VARLEN is not None


# --- FlashAttention-4, from the package flash-attn-4 -----------------------------------------------------------------


def _flash4_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    tokens_first = (t.transpose(1, 2) for t in (query, key, value))
    out, _ = flash4(*tokens_first, None, None, query.shape[2], key.shape[2], scale)
    return out


def _flash4_segments(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor,
    cu_k: torch.Tensor,
    max_q: int,
    max_k: int,
    scale: float,
) -> torch.Tensor:
    out, _ = flash4(query, key, value, cu_q, cu_k, max_q, max_k, scale)
    return out


@torch.library.custom_op("harness::flash4", mutates_args=())
def flash4(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention and its log-sum-exp, fp32 [.., heads, tokens]. Dense ([batch, seq, heads, dim]) without offsets."""
    from flash_attn.cute import flash_attn_func, flash_attn_varlen_func

    with torch.no_grad():
        if cu_q is None:
            return flash_attn_func(query, key, value, softmax_scale=scale, causal=True, return_lse=True)
        return flash_attn_varlen_func(
            query,
            key,
            value,
            cu_seqlens_q=cu_q,
            cu_seqlens_k=cu_k,
            max_seqlen_q=max_q,
            max_seqlen_k=max_k,
            softmax_scale=scale,
            causal=True,
            return_lse=True,
        )


@flash4.register_fake
def _(query, key, value, cu_q, cu_k, max_q, max_k, scale):  # type: ignore[no-untyped-def]
    *outer, tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((*outer, heads, tokens), dtype=torch.float32)


@torch.library.custom_op("harness::flash4_backward", mutates_args=())
def flash4_backward(
    grad: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    cu_q: torch.Tensor | None,
    cu_k: torch.Tensor | None,
    max_q: int,
    max_k: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value."""
    from flash_attn.cute.interface import _flash_attn_bwd

    segments: dict[str, Any] = {}
    if cu_q is not None:
        segments = {"cu_seqlens_q": cu_q, "cu_seqlens_k": cu_k, "max_seqlen_q": max_q, "max_seqlen_k": max_k}
    dq, dk, dv = (t.new_empty(t.shape) for t in (query, key, value))
    _flash_attn_bwd(
        query,
        key,
        value,
        out,
        grad,
        lse,
        softmax_scale=scale,
        causal=True,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        dq=dq,
        dk=dk,
        dv=dv,
        **segments,
    )
    return dq, dk, dv


@flash4_backward.register_fake
def _(grad, query, key, value, *others):  # type: ignore[no-untyped-def]
    return tuple(t.new_empty(t.shape) for t in (query, key, value))


def _flash4_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, cu_q, cu_k, ctx.max_q, ctx.max_k, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, cu_q, cu_k)


def _flash4_autograd(ctx: Any, grad: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    grads = flash4_backward(grad, *ctx.saved_tensors, ctx.max_q, ctx.max_k, ctx.scale)
    return (*grads, None, None, None, None, None)


flash4.register_autograd(_flash4_autograd, setup_context=_flash4_setup)


# --- cuDNN -----------------------------------------------------------------------------------------------------------


def _cudnn_dense(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float) -> torch.Tensor:
    return _sdpa(SDPBackend.CUDNN_ATTENTION, query, key, value, scale)


# --- common ----------------------------------------------------------------------------------------------------------


def _sdpa(
    backend: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    with sdpa_kernel([backend]):
        grouped = query.shape[1] != key.shape[1]
        out = scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2)


def _repeat_heads(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [tokens, heads, head_dim] with as many heads as the queries have."""
    groups = query.shape[1] // key.shape[1]
    return key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)


FLASH4 = Kernel("harness_fa4", _flash4_dense, _flash4_segments, offsets_multiple=64)
CUDNN = Kernel("harness_cudnn", _cudnn_dense, None, offsets_multiple=64)
FLASH = Kernel("harness_fa2", _flash_dense, _flash_segments, offsets_multiple=64)
