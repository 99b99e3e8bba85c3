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

from harness.model.stage import TIED_HEAD, Stage
from harness.parallel.local import local, own_part


class InitFromError(ValueError):
    """`model.init_from` does not hold the weights of this model; the message names the tensor or file."""


@torch.no_grad()
def init_weights(stage: Stage, seed: int) -> None:
    """Fill weights and buffers of `stage` (materialised, sharded or not) by transformers' own rules.

    Needs memory for the full tensors of one module at a time.
    """
    for name, module, tensors in _modules(stage):
        full = _unsharded_twin(module)
        with torch.random.fork_rng(devices=_cuda_devices(tensors)):
            torch.manual_seed(_seed_of(seed, name))
            stage.lm._init_weights(full)
        for key, tensor in tensors.items():
            _keep_own_part(tensor, getattr(full, key))


@torch.no_grad()
def load_weights(stage: Stage, folder: Path) -> None:
    """Fill `stage` from the safetensors files of a Hugging Face model, reading only this rank's parts.

    Raises InitFromError where a tensor of the model (of whichever stage, so that all ranks raise alike) is missing, too
    many or of another shape.
    """
    init_buffers(stage)
    files = _tensor_files(folder)
    _check_tensors(stage, folder, files)
    for name, parameter in stage.weights().items():
        with safe_open(files[name], framework="pt") as opened:
            local(parameter).copy_(opened.get_slice(name)[own_part(parameter)])


@torch.no_grad()
def init_buffers(stage: Stage) -> None:
    """Compute the buffers that no checkpoint holds (the rotary frequencies)."""
    for _, module, tensors in _modules(stage):
        if any(key in module._buffers for key in tensors):
            full = _unsharded_twin(module)
            stage.lm._init_weights(full)
            for key in tensors.keys() & module._buffers.keys():
                _keep_own_part(tensors[key], getattr(full, key))


def _check_tensors(stage: Stage, folder: Path, files: dict[str, Path]) -> None:
    """Compare names and shapes of the files' tensors with the whole model that `stage` is of. Raises InitFromError."""
    with torch.device("meta"):
        whole = type(stage.lm)(stage.lm.config)
    wanted = {name: list(parameter.shape) for name, parameter in whole.named_parameters()}
    # a tied output head is no parameter of its own, but may be stored
    unknown = sorted(set(files) - set(wanted) - set(whole.state_dict()))
    if unknown:
        raise InitFromError(f"model.init_from={folder}: has {unknown[0]}, which this model has not; check model.*")
    missing = sorted(set(wanted) - set(files))
    if missing:
        raise InitFromError(f"model.init_from={folder}: has no tensor {missing[0]}; check model.*")
    for file in sorted(set(files.values())):
        with safe_open(file, framework="pt") as opened:
            for name in sorted(name for name in wanted if files[name] == file):
                stored = opened.get_slice(name).get_shape()
                if stored != wanted[name]:
                    raise InitFromError(
                        f"model.init_from={folder}: {name} has shape {stored}, this model's is {wanted[name]}; "
                        "check model.*"
                    )


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
