"""Initial weights must not depend on how many ranks there are or how they divide the model."""

import pytest
import torch
from torch.distributed.tensor import DTensor

from harness.config.schema import ActivationCheckpoint, ModelConfig
from harness.model.init import init_buffers, init_weights
from harness.model.stage import Stage, build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.local import own_part
from harness.parallel.mesh import Grid, build_meshes
from harness.parallel.timetable import layers_of_stages, own_stages
from tests.ranks import in_ranks
from tests.tiny import tiny_model

QWEN3 = tiny_model(model_type="qwen3", no_rope_layer_interval=0, tie_word_embeddings=False)


def grid(pp: int = 1, dp_replicate: int = 1, dp_shard: int = 1, tp: int = 1) -> Grid:
    return Grid(pp=pp, dp_replicate=dp_replicate, dp_shard=dp_shard, cp=1, tp=tp)


CASES = {
    "fsdp2": (grid(dp_shard=2), 1, tiny_model()),
    "tp2": (grid(tp=2), 1, tiny_model()),
    "fsdp2xtp2": (grid(dp_shard=2, tp=2), 1, tiny_model()),
    "hsdp2x2": (grid(dp_replicate=2, dp_shard=2), 1, tiny_model()),
    "qwen3-fsdp2xtp2": (grid(dp_shard=2, tp=2), 1, QWEN3),
    "pp2xfsdp2": (grid(pp=2, dp_shard=2), 1, tiny_model()),
    "pp2xtp2-interleaved": (grid(pp=2, tp=2), 2, tiny_model()),
    "qwen3-pp2": (grid(pp=2), 1, QWEN3),
}


def own_part_of(model: ModelConfig, grid: Grid, rank: int, per_rank: int) -> list[Stage]:
    """This rank's stages, filled with NaN."""
    meshes = build_meshes(grid, "cpu")
    how = Treatment(torch.float32, None, False, ActivationCheckpoint.none, reshard_after_forward=True, sharded=True)
    layers = layers_of_stages(model.num_hidden_layers, grid.pp * per_rank)
    stages = []
    for number in own_stages(grid.pp_rank(rank), grid.pp, per_rank):
        loss = TokenLoss(z_loss=0.0, tp_mesh=meshes.tp) if number == len(layers) - 1 else None
        stage = build_stage(model, "sdpa", layers[number], loss)
        parallelize(stage, meshes, how)
        stages.append(stage.to_empty(device="cpu"))
    with torch.no_grad():
        for stage in stages:
            for tensor in (*stage.parameters(), *stage.buffers()):
                (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(torch.nan)
    return stages


def whole(model: ModelConfig) -> Stage:
    """The model of one process that divides nothing, without weights."""
    stage = build_stage(model, "sdpa", range(model.num_hidden_layers), TokenLoss(z_loss=0.0)).to_empty(device="cpu")
    stage.lm.tie_weights()
    return stage


def tensors_of(stages: list[Stage]) -> dict[str, torch.Tensor]:
    """Full weights and buffers by name."""
    named = {name: t for stage in stages for name, t in (*stage.weights().items(), *stage.lm.named_buffers())}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in named.items()}


def initial(model: ModelConfig, seed: int = 7) -> dict[str, torch.Tensor]:
    stage = whole(model)
    init_weights(stage, seed)
    return tensors_of([stage])


def _gathered(
    rank: int, world_size: int, model: ModelConfig, grid: Grid, per_rank: int
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, bytes]]]:
    stages = own_part_of(model, grid, rank, per_rank)
    for stage in stages:
        init_weights(stage, 7)
    local = {
        n: (str(own_part(p)), p.to_local().detach().numpy().tobytes())
        for stage in stages
        for n, p in stage.weights().items()
        if p.ndim > 1 and isinstance(p, DTensor)
    }
    return tensors_of(stages), local


@pytest.mark.parametrize("case", CASES)
def test_every_layout_starts_from_the_same_weights(case: str) -> None:
    grid, per_rank, model = CASES[case]
    expected = initial(model)
    ranks = in_ranks(_gathered, grid.world_size, model, grid, per_rank)
    assert {name for full, _ in ranks for name in full} == expected.keys()
    for full, _ in ranks:
        for name, tensor in full.items():
            assert torch.equal(tensor, expected[name]), name
    # two ranks hold the same numbers of a matrix only where they hold the same part of it
    for name in {name for _, local in ranks for name in local}:
        parts = [local[name] for _, local in ranks if name in local]
        assert len({part for part, _ in parts}) == len({content for _, content in parts}), name


def test_no_two_matrices_are_alike_and_the_spread_is_right() -> None:
    weights = {name: w for name, w in initial(tiny_model(initializer_range=0.05)).items() if w.ndim > 1}
    contents = {w.detach().numpy().tobytes()[:64] for w in weights.values()}
    assert len(contents) == len(weights)
    for name, w in weights.items():
        assert w.std().item() == pytest.approx(0.05, rel=0.1), name
        assert abs(w.mean().item()) < 0.005, name


def test_seed_decides() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(initial(tiny_model(), 1)[name], initial(tiny_model(), 1)[name])
    assert not torch.equal(initial(tiny_model(), 1)[name], initial(tiny_model(), 2)[name])


def test_buffers_of_later_stages_are_computed_without_touching_weights() -> None:
    model = tiny_model()
    expected = dict(whole(model).lm.named_buffers()).keys()
    stage = build_stage(model, "sdpa", range(2, 4), TokenLoss(z_loss=0.0)).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*stage.parameters(), *stage.buffers()):
            tensor.fill_(torch.nan)
    init_buffers(stage)
    full = initial(model)
    buffers = dict(stage.lm.named_buffers())
    assert buffers.keys() == expected
    assert all(torch.equal(tensor, full[name]) for name, tensor in buffers.items())
    assert all(parameter.isnan().all() for parameter in stage.parameters())
