"""Tensor parallel with sequence parallel: ranks share each layer's matrices, the embedding and the output head.

Between the layers every rank holds its part of the tokens ([batch, seq / tp, hidden]), so that norms and residuals are
shared out too; attention and MLP gather them and scatter their sums.
"""

import re
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from harness.model.stage import Stage


def apply_tensor_parallel(stage: Stage, mesh: DeviceMesh) -> None:
    """Divide a stage on the meta device, in place, by transformers' own plan for its layers.

    Raises ValueError where the plan asks for something that is not known here.
    """
    lm = stage.lm
    for name, module in lm.model.named_modules():
        if name.startswith("layers."):
            style = _style(name, module, lm.config.base_model_tp_plan, lm.config.model_type, mesh.size())
            if style is not None:
                parallelize_module(module, mesh, style)
    if stage.is_first:
        embedding = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
        parallelize_module(lm.model.embed_tokens, mesh, embedding)
        lm.model.embed_tokens.register_forward_hook(_arrived)
    if stage.is_last:
        parallelize_module(lm.model.norm, mesh, SequenceParallel(use_local_output=True))
        if stage.ties_inside:
            lm.lm_head.weight = lm.model.embed_tokens.weight
        else:  # the loss takes the weight and never calls the module, so that only the division of its rows matters
            parallelize_module(lm.lm_head, mesh, ColwiseParallel())


def _arrived(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """The result itself rather than a promise of it, whose gradient a compiled layer would not know how to return."""
    return output.clone()


def _style(name: str, module: nn.Module, plan: dict[str, str] | None, model_type: str, tp: int) -> ParallelStyle | None:
    if name.endswith(".self_attn"):
        return PrepareModuleInput(
            input_kwarg_layouts={"hidden_states": Shard(1)}, desired_input_kwarg_layouts={"hidden_states": Replicate()}
        )
    if name.endswith(".mlp"):
        return PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    if name.endswith((".q_norm", ".k_norm")):
        # sees only this rank's heads ([batch, seq, heads, head_dim]), so its gradient is summed over the ranks
        return SequenceParallel(sequence_dim=2, use_local_output=True)
    if name.endswith("norm"):
        return SequenceParallel()
    wanted = _planned(name, plan)
    if wanted is None:
        return None
    if wanted == "colwise":
        return ColwiseParallel()
    if wanted == "rowwise":
        return RowwiseParallel(output_layouts=Shard(1))
    raise ValueError(f"parallel.tp={tp}: {model_type} wants {wanted} for {name}; set parallel.tp=1")


def _planned(name: str, plan: dict[str, str] | None) -> str | None:
    for pattern, style in (plan or {}).items():
        if re.fullmatch(re.escape(pattern).replace(r"\*", r"\d+"), name):
            return style
    return None
