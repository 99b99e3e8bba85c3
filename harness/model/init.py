"""Gives a sharded model its first weights.

What a weight becomes depends on train.seed and the name of its module, never on the number of ranks or on how they
divide the model: every rank makes each module's full tensors and keeps its part of them. (Seeding per rank once cost a
3B model a restart after a trillion tokens: both tensor-parallel shards were initialised alike.)
"""

import copy
import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from harness.model.rotary import frequencies, is_rotary
from harness.model.stage import TIED_HEAD, Stage
from harness.parallel.local import local, own_part


@torch.no_grad()
def init_weights(stage: Stage, seed: int) -> None:
    """Fill weights and buffers of `stage` (materialised, sharded or not) by transformers' own rules.

    Needs memory for the full tensors of one module at a time.
    """
    for name, module, tensors in _modules(stage):
        full = _unsharded_twin(module)
        with torch.random.fork_rng(devices=_cuda_devices(tensors)):
            torch.manual_seed(_seed_of(seed, name))
            _fill(stage, full)
        for key, tensor in tensors.items():
            _keep_own_part(tensor, getattr(full, key))


@torch.no_grad()
def init_buffers(stage: Stage) -> None:
    """Compute the buffers that no checkpoint holds (the rotary frequencies)."""
    for _, module, tensors in _modules(stage):
        if any(key in module._buffers for key in tensors):
            full = _unsharded_twin(module)
            _fill(stage, full)
            for key in tensors.keys() & module._buffers.keys():
                _keep_own_part(tensors[key], getattr(full, key))


def _fill(stage: Stage, full: nn.Module) -> None:
    """Give a module of `stage`, whole, its first values."""
    if not is_rotary(full):
        stage.lm._init_weights(full)
        return
    for buffer in full._buffers.values():
        if buffer is not None:
            buffer.copy_(frequencies(full, buffer.device))


def _modules(stage: Stage) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Modules that own tensors, with those tensors; one that shares all of its tensors with an earlier one is left out.

    A head that is tied to the embedding of another stage comes as that embedding.
    """
    seen: set[int] = set()
    for name, module in stage.lm.named_modules():
        own = {**module._parameters, **module._buffers}
        new = {key: tensor for key, tensor in own.items() if tensor is not None and id(tensor) not in seen}
        seen.update(id(tensor) for tensor in new.values())
        if not new:
            continue
        if stage.lm.config.tie_word_embeddings and f"{name}.weight" == TIED_HEAD[0]:
            yield TIED_HEAD[1].removesuffix(".weight"), _as_embedding(new["weight"], stage.lm.config.pad_token_id), new
        else:
            yield name, module, new


def _as_embedding(weight: nn.Parameter, padding: int | None) -> nn.Embedding:
    rows, width = weight.shape
    embedding = nn.Embedding(rows, width, padding_idx=padding, device="meta")
    embedding.weight = weight
    return embedding


def _unsharded_twin(module: nn.Module) -> nn.Module:
    """A copy of the module with empty tensors of full size in place of its own."""
    twin = copy.copy(module)
    device = local(next(t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)).device
    twin._parameters = {
        key: None if p is None else nn.Parameter(torch.empty(p.shape, dtype=p.dtype, device=device))
        for key, p in module._parameters.items()
    }
    twin._buffers = {
        key: None if b is None else torch.empty(b.shape, dtype=b.dtype, device=device)
        for key, b in module._buffers.items()
    }
    return twin


def _keep_own_part(tensor: torch.Tensor, full: torch.Tensor) -> None:
    local(tensor).copy_(full[own_part(tensor)])


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


def _cuda_devices(tensors: dict[str, torch.Tensor]) -> list[int]:
    return sorted({tensor.device.index for tensor in map(local, tensors.values()) if tensor.is_cuda})
