"""Divides a stage on the meta device over the ranks: tensor parallel, FP8, fused projections, recomputation, compile, FSDP2,
in this order."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from harness.config.schema import ActivationCheckpoint, Fp8Recipe, Precision, TrainConfig
from harness.model.fuse import fuse_projections
from harness.model.stage import Stage
from harness.parallel.mesh import Meshes
from harness.parallel.recompute import recomputed
from harness.parallel.tensor import apply_tensor_parallel


@dataclass(frozen=True)
class Treatment:
    """How a stage computes; the same on all ranks."""

    dtype: torch.dtype
    """Of the matrix products. Weights, gradients and their sums stay fp32."""
    fp8: Fp8Recipe | None
    compile: bool
    activation_checkpoint: ActivationCheckpoint
    """Not `auto`."""
    reshard_after_forward: bool
    sharded: bool = True
    """By FSDP2; otherwise `harness.parallel.replicated` takes care of data parallel."""


def compute_dtype(train: TrainConfig, device_type: str) -> torch.dtype:
    """Type of the matrix products: bf16 only on CUDA, since CPUs are slower in it."""
    return torch.float32 if train.precision is Precision.fp32 or device_type != "cuda" else torch.bfloat16


def parallelize(stage: Stage, meshes: Meshes, how: Treatment) -> None:
    """Turn `stage` (on meta) into this rank's part of it, in place."""
    if meshes.tp is not None:
        apply_tensor_parallel(stage, meshes.tp)
    if how.fp8 is not None:
        from harness.fp8.convert import convert

        convert(stage, how.fp8, sharded=how.sharded, emulate=meshes.fsdp.device_type != "cuda")
    elif meshes.tp is None:
        for layer in stage.layers.values():
            fuse_projections(layer.get_submodule("self_attn"))
    for layer in stage.layers.values():
        # the layer's forward is replaced, not the layer: names of parameters stay, and FSDP's hooks stay outside
        layer.forward = _computed(layer.forward, how)
    if not how.sharded:
        return
    policy = MixedPrecisionPolicy(param_dtype=how.dtype, reduce_dtype=torch.float32)
    for layer in stage.layers.values():
        fully_shard(layer, mesh=meshes.fsdp, mp_policy=policy, reshard_after_forward=how.reshard_after_forward)
    fully_shard(stage, mesh=meshes.fsdp, mp_policy=policy, reshard_after_forward=False)


def _computed(forward: Callable[..., Any], how: Treatment) -> Callable[..., Any]:
    """A layer's forward, compiled and with recomputation.

    What is recomputed of a layer in part, the compiler has to know. All of it is recomputed around the compiled layer: torch
    2.13 fails to compile that together with tensor parallel.
    """
    if how.activation_checkpoint is ActivationCheckpoint.full:
        return recomputed(torch.compile(forward) if how.compile else forward, ActivationCheckpoint.full)
    forward = recomputed(forward, how.activation_checkpoint)
    return torch.compile(forward) if how.compile else forward
