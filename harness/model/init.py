"""Gives a sharded model its first weights.

What a weight becomes depends on train.seed and the name of its module, never on the number of ranks or on how they
divide the model: every rank makes each module's full tensors and keeps its part of them. (Seeding per rank once cost a
3B model a restart after a trillion tokens: both tensor-parallel shards were initialised alike.)
"""

import copy
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from transformers import PreTrainedModel


class InitFromError(ValueError):
    """`model.init_from` does not hold the weights of this model; the message names the tensor or file."""


@torch.no_grad()
def init_weights(model: PreTrainedModel, seed: int) -> None:
    """Fill weights and buffers of `model` (materialised, sharded or not) by transformers' own rules.

    Needs memory for the full tensors of one module at a time.
    """
    for name, module, tensors in _modules(model):
        full = _unsharded_twin(module)
        with torch.random.fork_rng(devices=_cuda_devices(tensors)):
            torch.manual_seed(_seed_of(seed, name))
            model._init_weights(full)
        for key, tensor in tensors.items():
            _keep_own_part(tensor, getattr(full, key))


@torch.no_grad()
def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Fill `model` from the safetensors files of a Hugging Face model, reading only this rank's parts.

    Raises InitFromError where a tensor is missing, too many or of another shape.
    """
    init_buffers(model)
    files = _tensor_files(folder)
    wanted = dict(model.named_parameters())  # a tied output head is not listed twice
    tied = set(model.state_dict()) - set(wanted)
    unknown = sorted(set(files) - set(wanted) - tied)
    if unknown:
        raise InitFromError(f"model.init_from={folder}: has {unknown[0]}, which this model has not; check model.*")
    for name, parameter in wanted.items():
        if name not in files:
            raise InitFromError(f"model.init_from={folder}: has no tensor {name}; check model.*")
        with safe_open(files[name], framework="pt") as opened:
            stored = opened.get_slice(name)
            if tuple(stored.get_shape()) != tuple(parameter.shape):
                raise InitFromError(
                    f"model.init_from={folder}: {name} has shape {stored.get_shape()}, this model's is "
                    f"{list(parameter.shape)}; check model.*"
                )
            _local(parameter).copy_(stored[own_part(parameter)])


@torch.no_grad()
def init_buffers(model: PreTrainedModel) -> None:
    """Compute the buffers that no checkpoint holds (the rotary frequencies)."""
    for _, module, tensors in _modules(model):
        if any(key in module._buffers for key in tensors):
            full = _unsharded_twin(module)
            model._init_weights(full)
            for key in tensors.keys() & module._buffers.keys():
                _keep_own_part(tensors[key], getattr(full, key))


def own_part(tensor: torch.Tensor) -> tuple[slice, ...]:
    """Which part of the full tensor this rank holds, one slice per dimension."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 in shape:  # a rank without a share of a small tensor
        return tuple(slice(0, size) for size in shape)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any]]]:
    """Modules that own tensors, with those tensors; one that shares all of its tensors with an earlier one is left out."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = {**module._parameters, **module._buffers}
        new = {key: tensor for key, tensor in own.items() if tensor is not None and id(tensor) not in seen}
        seen.update(id(tensor) for tensor in new.values())
        if new:
            yield name, module, new


def _unsharded_twin(module: nn.Module) -> nn.Module:
    """A copy of the module with empty tensors of full size in place of its own."""
    twin = copy.copy(module)
    device = _local(next(t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None)).device
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
    _local(tensor).copy_(full[own_part(tensor)])


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _seed_of(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big") >> 1


def _cuda_devices(tensors: dict[str, torch.Tensor]) -> list[int]:
    return sorted({tensor.device.index for tensor in map(_local, tensors.values()) if tensor.is_cuda})


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Tensor name -> file that holds it."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if index.exists():
        try:
            weight_map = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise InitFromError(f"model.init_from={folder}: {index.name} is not a safetensors index") from error
        missing = sorted({file for file in weight_map.values() if not (folder / file).exists()})
        if missing:
            raise InitFromError(f"model.init_from={folder}: {missing[0]} is missing")
        return {name: folder / file for name, file in weight_map.items()}
    if single.exists():
        with safe_open(single, framework="pt") as opened:
            return {name: single for name in opened.keys()}  # noqa: SIM118 (safe_open is no dict)
    raise InitFromError(f"model.init_from={folder}: no model.safetensors or {index.name} in it")
