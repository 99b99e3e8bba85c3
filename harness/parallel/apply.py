"""Divides a model on the meta device over the mesh: tensor parallel, compile, recomputation, FSDP2, in this order."""

import re
from functools import partial

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.config.schema import ActivationCheckpoint, Precision, TrainConfig
from harness.model.loss import LossModel
from harness.parallel.mesh import data_parallel_mesh


def compute_dtype(train: TrainConfig, device_type: str) -> torch.dtype:
    """Type of the matrix products: bf16 only on CUDA, since CPUs are slower in it. Raises ValueError for fp8."""
    if train.precision is Precision.fp8:
        raise ValueError("train.precision=fp8: not supported yet; set bf16")
    return torch.bfloat16 if train.precision is Precision.bf16 and device_type == "cuda" else torch.float32


def parallelize(model: LossModel, mesh: DeviceMesh, train: TrainConfig) -> None:
    """Turn `model` (on meta) into this rank's part of it, in place. Weights, gradients and their sums stay fp32."""
    layers = model.lm.model.layers
    if "tp" in (mesh.mesh_dim_names or ()):
        apply_tensor_parallel(model.lm, mesh["tp"])
    for layer in layers:
        # the layer's forward is replaced, not the layer: names of parameters stay, and FSDP's hooks stay outside
        if train.compile and mesh.device_type == "cuda":
            layer.forward = torch.compile(layer.forward)
        if train.activation_checkpoint is ActivationCheckpoint.full:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    dtype = compute_dtype(train, mesh.device_type)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for module in (*layers, model):
        fully_shard(module, mesh=data_parallel_mesh(mesh), mp_policy=policy)


def apply_tensor_parallel(lm: PreTrainedModel, mesh: DeviceMesh) -> None:
    """Divide the layers' matrices as transformers' own plan for the model says; embeddings and head stay whole.

    Raises ValueError where the plan asks for something that is not known here.
    """
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        ParallelStyle,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    styles: dict[str, type[ParallelStyle]] = {"colwise": ColwiseParallel, "rowwise": RowwiseParallel}
    for name, module in lm.model.named_modules():
        if not name.startswith("layers."):
            continue  # some releases plan the embeddings too
        wanted = _planned_style(name, lm.config.base_model_tp_plan)
        if _is_head_norm(name, module):
            # sees only this rank's heads ([batch, seq_len, heads, head_dim]), so its gradient is summed over the ranks
            style: ParallelStyle = SequenceParallel(sequence_dim=2, use_local_output=True)
        elif wanted is None:
            continue
        elif wanted in styles:
            style = styles[wanted]()
        else:
            raise ValueError(f"parallel.tp={mesh.size()}: {lm.config.model_type} wants {wanted} for {name}; set tp=1")
        parallelize_module(module, mesh, style)


def _planned_style(name: str, plan: dict[str, str] | None) -> str | None:
    for pattern, style in (plan or {}).items():
        if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name):
            return style
    return None


def _is_head_norm(name: str, module: nn.Module) -> bool:
    return name.endswith((".q_norm", ".k_norm")) and "RMSNorm" in type(module).__name__
