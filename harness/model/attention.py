"""Which attention a run uses, and what its layers are given to use it.

Documents are told apart by their positions alone, which restart at each. A kernel for segments takes every document as
a sequence of its own and needs no mask; sdpa (on CPU, or where no such kernel can be had) takes a mask. With context
parallel each rank holds the queries of two chunks of every sequence and gathers the keys and values of all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from harness.config.schema import AttentionKernel
from harness.model.attention_functions import dense, in_segments, masked, register
from harness.model.attention_kernels import CUDNN, FLASH, FLASH4, has_varlen
from harness.model.attention_segments import mask, padded, segments
from harness.parallel.sequence import own_chunks

_FASTEST_FIRST = [AttentionKernel.cudnn, AttentionKernel.flash4, AttentionKernel.flash, AttentionKernel.sdpa]
_KERNELS = {AttentionKernel.flash4: FLASH4, AttentionKernel.cudnn: CUDNN, AttentionKernel.flash: FLASH}

Inputs = Callable[[np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Attention:
    """A kernel, ready to be used by a model."""

    name: str
    """What transformers' attention interface knows it by: a model's `attn_implementation`."""
    remark: str | None
    """Said once where it is not what was asked for, or not the fastest that the GPU could have."""
    from_positions: Inputs

    def inputs(self, position_ids: np.ndarray) -> dict[str, torch.Tensor]:
        """Keyword arguments for every decoder layer, as CPU tensors, also where the layers see a part of the tokens.

        `position_ids` is int32 or int64 [batch, seq], of the whole sequences, 0 at the first token of each document.
        """
        return {name: torch.from_numpy(array) for name, array in self.from_positions(position_ids).items()}


@dataclass(frozen=True)
class _Need:
    """What attention has to do."""

    device: torch.device
    dtype: torch.dtype
    document_mask: bool
    head_dim: int
    heads: int
    kv_heads: int
    cp: int
    window: int | None
    """Tokens that layers of sliding attention see; None: all layers see all."""

    @property
    def segments(self) -> bool:
        """Whether queries and keys are not simply all tokens of a sequence, from its start."""
        return self.document_mask or self.cp > 1


def choose_attention(
    device: torch.device,
    dtype: torch.dtype,
    *,
    wanted: AttentionKernel,
    document_mask: bool,
    head_dim: int,
    heads: int,
    kv_heads: int,
    window: int | None = None,
    cp: int = 1,
    cp_rank: int = 0,
    cp_group: dist.ProcessGroup | None = None,
) -> Attention:
    """The kernel `wanted`, or the next that can be had, registered with transformers.

    `dtype` is what queries and keys are computed in. `window`: tokens that a query sees in layers of sliding attention, if
    there are such layers and that is less than a whole sequence. With `cp` > 1, `cp_group` holds the ranks that share each
    sequence, in the order of their `cp_rank`. A kernel that varies from run to run is left out where torch is in its
    deterministic mode already.
    """
    if (cp > 1) != (cp_group is not None):
        raise ValueError(f"cp={cp} ranks share a sequence, but cp_group is {cp_group}")
    need = _Need(device, dtype, document_mask, head_dim, heads, kv_heads, cp, window)
    chosen, remark = _choose(wanted, need)
    chunks, chunk_count = own_chunks(cp, cp_rank), 1 if cp == 1 else 2 * cp
    suffix = "" if cp_group is None else f"_cp_{cp_group.group_name}"
    if chosen == AttentionKernel.sdpa:
        if window is not None:
            name = register(f"harness_masked{suffix}", masked(cp_group))
            return Attention(name, remark, _window_inputs(chunks, chunk_count, window))
        name = "sdpa" if cp_group is None else register(f"harness_masked{suffix}", masked(cp_group))
        return Attention(name, remark, _mask_inputs(chunks, chunk_count) if need.segments else _no_inputs)
    kernel = _KERNELS[chosen]
    if not need.segments:
        return Attention(register(kernel.name, dense(kernel.dense)), remark, _no_inputs)
    assert kernel.segments is not None
    name = register(f"{kernel.name}_segments{suffix}", in_segments(kernel.segments, chunks, cp_group))
    return Attention(name, remark, _segment_inputs(chunks, chunk_count, kernel.offsets_multiple))


# --- the choice ------------------------------------------------------------------------------------------------------


def _choose(wanted: AttentionKernel, need: _Need) -> tuple[AttentionKernel, str | None]:
    """The kernel to use, and a remark where a better one, or the one that was asked for, can't be had."""
    reasons = []
    for kernel in _candidates(wanted, need):
        obstacle = _obstacle(kernel, need)
        if obstacle is None:
            break
        reasons.append(obstacle)
    remark = f"train.attention={wanted}: {kernel} is used, because {'; '.join(dict.fromkeys(reasons))}"
    return kernel, remark if reasons else None


def _candidates(wanted: AttentionKernel, need: _Need) -> list[AttentionKernel]:
    """What to try, in this order; the last can always be had."""
    automatic = [kernel for kernel in _FASTEST_FIRST if _pays(kernel, need)]
    if wanted == AttentionKernel.auto:
        return automatic
    worse = _FASTEST_FIRST[_FASTEST_FIRST.index(wanted) + 1 :]
    return [wanted, *(kernel for kernel in worse if kernel in automatic)]


def _pays(kernel: AttentionKernel, need: _Need) -> bool:
    """Whether to take it unasked, where it can be had."""
    if need.device.type != "cuda":
        return kernel == AttentionKernel.sdpa
    if kernel == AttentionKernel.flash4:
        return _capability(need.device)[0] in (9, 10)
    if kernel == AttentionKernel.cudnn:
        return not need.segments
    return True


def _obstacle(kernel: AttentionKernel, need: _Need) -> str | None:
    """Why the kernel can't be used, or None."""
    if kernel == AttentionKernel.sdpa:
        return None
    if need.device.type != "cuda":
        return f"{kernel} runs on GPUs only"
    if need.window is not None:
        return f"{kernel} is not used for layers of sliding attention, which see {need.window} tokens"
    if need.dtype not in (torch.bfloat16, torch.float16):
        return f"the faster kernels compute in bf16 or fp16, not {str(need.dtype).removeprefix('torch.')}"
    if need.head_dim % 8 or need.head_dim > 256:
        return f"the faster kernels need a head_dim that 8 divides, 256 at most, not {need.head_dim}"
    return {
        AttentionKernel.flash4: _flash4_obstacle,
        AttentionKernel.cudnn: _cudnn_obstacle,
        AttentionKernel.flash: _flash_obstacle,
    }[kernel](need)


def _flash4_obstacle(need: _Need) -> str | None:
    major, minor = _capability(need.device)
    if major not in (9, 10):
        return f"flash4 needs a GPU of compute capability 9 or 10, not {major}.{minor}"
    if major == 10 and 128 < need.head_dim < 256:
        return f"flash4 needs a head_dim of up to 128, or 256, on this GPU, not {need.head_dim}"
    try:
        import flash_attn.cute.interface  # noqa: F401
    except ImportError as error:
        return f"flash4 needs the package flash-attn-4 ({error})"
    except Exception as error:  # it brings a compiler of its own, which fails to load in ways of its own
        return f"flash4 could not be loaded: {type(error).__name__}: {error}"
    return None


def _cudnn_obstacle(need: _Need) -> str | None:
    if need.segments:
        return "cudnn plans anew for every set of documents or chunks, which takes far longer than the attention itself"
    if torch.are_deterministic_algorithms_enabled():
        return "cudnn does not give the same bits each time, as train.deterministic asks"
    query, key = (
        torch.empty(1, heads, 128, need.head_dim, device=need.device, dtype=need.dtype, requires_grad=True)
        for heads in (need.heads, need.kv_heads)
    )
    case = torch.backends.cuda.SDPAParams(query, key, key, None, 0.0, True, need.heads != need.kv_heads)
    if not torch.backends.cuda.can_use_cudnn_attention(case):
        return f"cudnn can't do {need.heads} heads over {need.kv_heads} of head_dim {need.head_dim} on this GPU"
    return None


def _flash_obstacle(need: _Need) -> str | None:
    major, minor = _capability(need.device)
    if major < 8:
        return f"flash needs a GPU of compute capability 8 or higher, not {major}.{minor}"
    if need.segments and not has_varlen():
        return f"torch {torch.__version__} has no flash kernel for variable lengths"
    return None


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


# --- what layers are given -------------------------------------------------------------------------------------------


def _no_inputs(position_ids: np.ndarray) -> dict[str, np.ndarray]:
    return {}


def _mask_inputs(chunks: list[int], chunk_count: int) -> Inputs:
    return lambda position_ids: {"attention_mask": mask(position_ids, chunks, chunk_count)}


def _window_inputs(chunks: list[int], chunk_count: int, window: int) -> Inputs:
    return lambda position_ids: {
        "attention_mask": mask(position_ids, chunks, chunk_count),
        "sliding_mask": mask(position_ids, chunks, chunk_count, window),
    }


def _segment_inputs(chunks: list[int], chunk_count: int, multiple: int) -> Inputs:
    def inputs(position_ids: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for place, chunk in enumerate(chunks):
            cu_q, cu_k = segments(position_ids, chunk, chunk_count)
            found |= {f"cu_q_{place}": padded(cu_q, multiple), f"cu_k_{place}": padded(cu_k, multiple)}
        return found

    return inputs
