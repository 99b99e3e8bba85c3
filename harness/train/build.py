"""From the config to this rank's part of the model, in memory but not yet filled."""

from dataclasses import dataclass

import torch

from harness.config.layout import layout, replicates_weights, stages_per_rank
from harness.config.schema import Fp8Recipe, Precision, RootConfig
from harness.fp8.selfcheck import faulty_kernels
from harness.fp8.weights import Fp8Weights
from harness.model.attention import Attention, choose_attention
from harness.model.family import head_dim, slides
from harness.model.memory import choose
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import Treatment, compute_dtype, parallelize
from harness.parallel.mesh import Grid, Meshes, build_meshes
from harness.parallel.model import OneStageModel, ParallelModel
from harness.parallel.pipeline import PipelineModel
from harness.parallel.replicated import ReplicatedModel
from harness.parallel.timetable import layers_of_stages, own_stages


@dataclass(frozen=True)
class Built:
    """A model and how it attends; `remarks` are for the log."""

    model: ParallelModel
    attention: Attention
    remarks: list[str]


def build_model(config: RootConfig, grid: Grid, device: torch.device, rank: int) -> Built:
    """Collective over all ranks. Raises ValueError where the model can't be divided as the config says."""
    meshes = build_meshes(grid, device.type)
    dtype = compute_dtype(config.train, device.type)
    attention = choose_attention(
        device,
        dtype,
        wanted=config.train.attention,
        document_mask=config.data.document_mask,
        head_dim=head_dim(config.model),
        heads=config.model.num_attention_heads,
        kv_heads=config.model.num_key_value_heads,
        window=config.model.sliding_window if slides(config.model, config.data.seq_len) else None,
        cp=grid.cp,
        cp_rank=grid.cp_rank(rank),
        cp_group=meshes.cp,
    )
    gpu_bytes = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    memory = choose(config, gpu_bytes)
    fp8 = config.train.fp8_recipe if config.train.precision is Precision.fp8 else None
    how = Treatment(
        dtype=dtype,
        fp8=fp8,
        compile=config.train.compile and device.type == "cuda",
        activation_checkpoint=memory.activation_checkpoint,
        reshard_after_forward=memory.reshard_after_forward,
        sharded=not replicates_weights(config),
    )
    model = _divide(config, grid, meshes, how, attention, device, rank)
    remarks = [*layout(config).remarks, *(remark for remark in (attention.remark, memory.remark) if remark)]
    if fp8 is Fp8Recipe.tensorwise:
        model.fp8 = Fp8Weights(model.stages)
        if device.type == "cuda":
            remarks += faulty_kernels(device)
    return Built(model, attention, remarks)


def _divide(
    config: RootConfig,
    grid: Grid,
    meshes: Meshes,
    how: Treatment,
    attention: Attention,
    device: torch.device,
    rank: int,
) -> ParallelModel:
    per_rank = stages_per_rank(config)
    layers = layers_of_stages(config.model.num_hidden_layers, grid.pp * per_rank)
    stages = []
    for number in own_stages(grid.pp_rank(rank), grid.pp, per_rank):
        last = number == len(layers) - 1
        loss = TokenLoss(z_loss=config.train.z_loss, tp_mesh=meshes.tp) if last else None
        stage = build_stage(config.model, attention.name, layers[number], loss, config.data.seq_len)
        parallelize(stage, meshes, how)
        stages.append(stage.to_empty(device=device))
    if not how.sharded:
        return ReplicatedModel(
            stages[0], how.dtype, meshes.fsdp["dp_replicate"] if grid.dp_replicate > 1 else meshes.fsdp
        )
    if meshes.pp is None:
        return OneStageModel(stages[0], keep_gathered=not how.reshard_after_forward)
    tokens = config.data.seq_len // (grid.cp * grid.tp)
    return PipelineModel(
        stages,
        meshes.pp,
        hidden_shape=(config.train.micro_batch_size, tokens, config.model.hidden_size),
        dtype=how.dtype,
        device=device,
        keep_gathered=not how.reshard_after_forward,
    )
