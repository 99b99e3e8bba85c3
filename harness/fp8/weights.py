"""Weights in FP8: which matrices, their common scales, and how they get there from the fp32 master weights.

Matrices that are multiplied together (queries, keys and values; gate and up) share one scale, so that their product is one.
FSDP2 gathers them in FP8 (`harness.fp8.gathered`; `harness.parallel.local` sees through that wrapping). Where weights are
replicated, they are cast after each update.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor

from harness.fp8.kernels import VALUE, cast_into, scale_for
from harness.model.stage import Stage
from harness.parallel.local import local

MIN_WIDTH = 1024
"""Matrices with a narrower side stay in bf16: casting costs them more than the faster product saves."""


def attention_group(layer: nn.Module) -> list[nn.Linear] | None:
    """Queries, keys and values of a decoder layer; None: too narrow for FP8."""
    attention: Any = layer.get_submodule("self_attn")
    return _wide([attention.q_proj, attention.k_proj, attention.v_proj])


def output_group(layer: nn.Module) -> list[nn.Linear] | None:
    """Attention's output projection."""
    return _wide([layer.get_submodule("self_attn.o_proj")])  # type: ignore[list-item]


def gated_groups(layer: nn.Module) -> tuple[list[nn.Linear], list[nn.Linear]] | None:
    """Gate and up; down."""
    mlp: Any = layer.get_submodule("mlp")
    inner, outer = _wide([mlp.gate_proj, mlp.up_proj]), _wide([mlp.down_proj])
    return (inner, outer) if inner and outer else None


def groups(stages: Sequence[Stage]) -> Iterator[list[nn.Linear]]:
    """The matrices in FP8, those together that are multiplied together."""
    for stage in stages:
        for layer in stage.layers.values():
            for group in (attention_group(layer), output_group(layer), *(gated_groups(layer) or ())):
                if group:
                    yield group


class Fp8Weights:
    """The matrices in FP8 of this rank's stages, in memory, and their scales."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        grouped = list(groups(stages))
        self._modules = [module for group in grouped for module in group]
        self._counts = [len(group) for group in grouped]
        self._masters = [module.weight for module in self._modules]
        self._members: torch.Tensor | None = None

    @torch.no_grad()
    def scales(self) -> list[torch.Tensor]:
        """The scale of each matrix (0-dim fp32), for what the master weights hold now. Collective over the ranks that share
        them."""
        parts = [local(master).detach() for master in self._masters]
        device = parts[0].device
        held = [number for number, part in enumerate(parts) if part.numel()]  # a rank may have no share of a small one
        largest = torch.zeros(len(parts), device=device)
        if self._members is None:
            members = [number for number, count in enumerate(self._counts) for _ in range(count)]
            self._members = torch.tensor(members, device=device)
            self._held = torch.tensor(held, device=device, dtype=torch.int64)
        if held:
            norms = torch._foreach_norm([parts[number] for number in held], ord=math.inf)
            largest.index_copy_(0, self._held, torch.stack(norms))
        _largest_of_ranks(largest, self._masters[0])
        shared = torch.zeros(len(self._counts), device=device).scatter_reduce_(0, self._members, largest, "amax")
        return list(scale_for(shared, VALUE)[self._members].unbind())

    def scale_gathering(self) -> None:
        """Let FSDP2 gather the matrices as they are now. After every update, and before the first pass. Collective."""
        if not self._modules:
            return
        for master, scale in zip(self._masters, self.scales(), strict=True):
            # `to_local` would make another tensor, which FSDP2 does not look at
            part: Any = master._local_tensor if isinstance(master, DTensor) else master
            part.scale = scale

    @torch.no_grad()
    def copies(self, dtype: torch.dtype) -> dict[int, nn.Parameter]:
        """The matrices in FP8, each of which stands for one of `dtype`, by the id of its master weight."""
        from torchao.float8.float8_training_tensor import Float8TrainingTensor

        self._copies: list[Any] = []
        for master, scale in zip(self._masters, self.scales(), strict=True):
            values = torch.empty_like(master, dtype=VALUE, requires_grad=False)
            cast_into(master, scale, values)
            self._copies.append(nn.Parameter(Float8TrainingTensor(values, scale, dtype, None)))
        return {id(master): copy for master, copy in zip(self._masters, self._copies, strict=True)}

    @torch.no_grad()
    def write_copies(self) -> None:
        """Cast the matrices as they are now into the copies."""
        for master, copy, scale in zip(self._masters, self._copies, self.scales(), strict=True):
            cast_into(master, scale, copy._data)
            copy._scale = scale


def _wide(modules: list[nn.Linear]) -> list[nn.Linear] | None:
    out = sum(module.out_features for module in modules)
    return modules if min(modules[0].in_features, out) >= MIN_WIDTH else None


def _largest_of_ranks(values: torch.Tensor, like: torch.Tensor) -> None:
    """The largest of each value over the ranks that share a weight that is divided as `like` is."""
    if not isinstance(like, DTensor):
        return
    for dimension, placement in enumerate(like.placements):
        if placement.is_shard():
            dist.all_reduce(values, op=dist.ReduceOp.MAX, group=like.device_mesh.get_group(dimension))
