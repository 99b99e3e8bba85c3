"""A pipeline must compute what one process computes: losses, and gradients by name."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor

from harness.config.schema import ActivationCheckpoint, AttentionKernel, ModelConfig
from harness.model.attention import Attention, choose_attention
from harness.model.init import init_weights
from harness.model.stage import TIED_HEAD, Stage, build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.mesh import Grid, build_meshes
from harness.parallel.model import Inputs
from harness.parallel.pipeline import PipelineModel
from harness.parallel.sequence import shard_sequence
from harness.parallel.timetable import layers_of_stages, own_stages
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model

BATCH, SEQ, MICRO_BATCHES = 2, 32, 5
SCALE = 0.01
CPU = torch.device("cpu")
TIED, UNTIED = tiny_model(), tiny_model(tie_word_embeddings=False)


def grid(pp: int, dp_shard: int = 1, cp: int = 1, tp: int = 1) -> Grid:
    return Grid(pp=pp, dp_replicate=1, dp_shard=dp_shard, cp=cp, tp=tp)


CASES = {
    "pp2-tied": (grid(pp=2), 1, TIED),
    "pp2-interleaved-tied": (grid(pp=2), 2, TIED),
    "pp4-untied": (grid(pp=4), 1, UNTIED),
    "pp2xshard2-interleaved-untied": (grid(pp=2, dp_shard=2), 2, UNTIED),
    "pp2xshard2-tied": (grid(pp=2, dp_shard=2), 1, TIED),
    "pp2xtp2-interleaved-tied": (grid(pp=2, tp=2), 2, TIED),
    "pp2xcp2-tied": (grid(pp=2, cp=2), 1, TIED),
}


def micro_batches(dp_rank: int) -> list[dict[str, np.ndarray]]:
    """Packed documents; some labels are left out."""
    draw = np.random.default_rng(dp_rank)
    found = []
    for _ in range(MICRO_BATCHES):
        ids = draw.integers(0, VOCAB, (BATCH, SEQ + 1))
        labels = np.where(draw.random((BATCH, SEQ)) < 0.1, -100, ids[:, 1:])
        starts = np.maximum.accumulate(np.where(draw.random((BATCH, SEQ)) < 0.2, np.arange(SEQ), 0), axis=1)
        found.append({"x": ids[:, :-1], "labels": labels, "position_ids": np.arange(SEQ) - starts})
    return found


def to_inputs(arrays: dict[str, np.ndarray], attention: Attention, cp: int = 1, cp_rank: int = 0) -> Inputs:
    own = {name: torch.from_numpy(shard_sequence(array, cp, cp_rank)) for name, array in arrays.items()}
    return {**own, **attention.inputs(arrays["position_ids"])}


def attend(model: ModelConfig, **context_parallel: Any) -> Attention:
    return choose_attention(
        CPU,
        torch.float32,
        wanted=AttentionKernel.auto,
        document_mask=True,
        head_dim=model.hidden_size // model.num_attention_heads,
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        **context_parallel,
    )


def expected(model: ModelConfig, dp_size: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Sum of the losses of all data-parallel ranks, and of the gradients, from one stage in one process."""
    attention = attend(model)
    loss = TokenLoss(z_loss=1e-3)
    stage = build_stage(model, attention.name, range(model.num_hidden_layers), loss).to_empty(device=CPU)
    stage.lm.tie_weights()
    init_weights(stage, 7)
    for rank in range(dp_size):
        for arrays in micro_batches(rank):
            (stage(**to_inputs(arrays, attention)).sum() * SCALE).backward()
    return loss.statistics[0].item(), {name: p.grad for name, p in stage.weights().items() if p.grad is not None}


def build_pipeline(
    rank: int, grid: Grid, per_rank: int, model: ModelConfig, keep_gathered: bool
) -> tuple[PipelineModel, Any]:
    """This rank's part of a pipeline with weights, and what its micro batches are."""
    meshes = build_meshes(grid, "cpu")
    attention = attend(model, cp=grid.cp, cp_rank=grid.cp_rank(rank), cp_group=meshes.cp)
    layers = layers_of_stages(model.num_hidden_layers, grid.pp * per_rank)
    how = Treatment(torch.float32, None, False, ActivationCheckpoint.full, not keep_gathered, sharded=True)
    stages: list[Stage] = []
    for number in own_stages(grid.pp_rank(rank), grid.pp, per_rank):
        loss = TokenLoss(z_loss=1e-3, tp_mesh=meshes.tp) if number == len(layers) - 1 else None
        stage = build_stage(model, attention.name, layers[number], loss)
        parallelize(stage, meshes, how)
        init_weights(stage.to_empty(device=CPU), 7)
        stages.append(stage)
    assert meshes.pp is not None
    pipeline = PipelineModel(
        stages,
        meshes.pp,
        hidden_shape=(BATCH, SEQ // (grid.cp * grid.tp), model.hidden_size),
        dtype=torch.float32,
        device=CPU,
        keep_gathered=keep_gathered,
    )
    return pipeline, [
        to_inputs(arrays, attention, grid.cp, grid.cp_rank(rank)) for arrays in micro_batches(grid.dp_rank(rank))
    ]


def _trained(rank: int, world_size: int, grid: Grid, per_rank: int, model: ModelConfig) -> dict[str, Any]:
    """Losses and full gradients with and without gathering for every micro batch, and of an evaluation between them."""
    found: dict[str, Any] = {"losses": [], "gradients": []}
    for keep_gathered in (True, False):
        pipeline, inputs = build_pipeline(rank, grid, per_rank, model, keep_gathered)
        for _ in range(2):
            pipeline.evaluate(inputs)
            found["losses"] += [None if pipeline.statistics is None else pipeline.statistics[0].item()]
            parameters = pipeline.parameters
            assert all(isinstance(p, DTensor) and p.grad is None for p in parameters.values())
            pipeline.forward_backward(inputs, SCALE)
            assert all(pipeline.parameters[name] is parameter for name, parameter in parameters.items())
            found["losses"] += [None if pipeline.statistics is None else pipeline.statistics[0].item()]
            found["gradients"] += [{name: p.grad.full_tensor() for name, p in parameters.items()}]  # type: ignore[union-attr]
            for parameter in parameters.values():
                parameter.grad = None
        found["counted"] = [name for name, p in parameters.items() if any(p is counted for counted in pipeline.counted)]
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_pipeline_computes_what_one_process_computes(case: str) -> None:
    grid, per_rank, model = CASES[case]
    loss_sum, gradients = expected(model, grid.dp_size)
    ranks = in_ranks(_trained, grid.world_size, grid, per_rank, model)
    for sums in zip(*(found["losses"] for found in ranks), strict=True):
        assert sum(loss for loss in sums if loss is not None) / grid.tp == pytest.approx(loss_sum, rel=1e-6)
    for found in ranks:
        for step in found["gradients"]:
            for name, gradient in step.items():
                wanted = gradients[name] / grid.fsdp_size
                assert (gradient - wanted).norm() < 1e-5 * wanted.norm(), name
    names = sorted(name for found in ranks[:: grid.stage_size] for name in found["counted"])
    assert names == sorted(gradients), "each parameter counts once"
    if model.tie_word_embeddings:
        first, last = (found["gradients"] for found in (ranks[0], ranks[-1]))
        for one, other in zip(first, last, strict=True):
            assert torch.equal(one[TIED_HEAD[1]], other[TIED_HEAD[1]])
