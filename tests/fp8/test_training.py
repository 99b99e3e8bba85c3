"""FP8 on CPU, where torchao emulates it: what FSDP2, the optimizer and checkpoints do with its wrapped weights."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from harness.checkpoint.state import training_state
from harness.config.schema import ActivationCheckpoint, Fp8Recipe, OptimConfig, RootConfig
from harness.fp8 import convert, weights
from harness.fp8.weights import Fp8Weights
from harness.model.init import init_weights
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.optim.clip import local_square_sum
from harness.optim.optimizer import build_optimizer
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.local import local
from harness.parallel.mesh import build_meshes, resolve
from harness.parallel.model import OneStageModel
from harness.parallel.replicated import ReplicatedModel
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model

STEPS = 4


def _train(rank: int, world_size: int, recipe: Fp8Recipe | None, sharded: bool = True) -> dict[str, Any]:
    weights.MIN_WIDTH = convert.MIN_WIDTH = 64
    config = RootConfig(model=tiny_model())
    config.cluster.ranks_per_node = world_size
    config.parallel.dp_replicate = 1 if sharded else world_size
    config.train.steps, config.train.global_batch_size = STEPS, 4
    grid = resolve(config, world_size)
    stage = build_stage(config.model, "sdpa", range(4), TokenLoss(z_loss=0.0))
    how = Treatment(torch.float32, recipe, False, ActivationCheckpoint.none, False, sharded=sharded)
    meshes = build_meshes(grid, "cpu")
    parallelize(stage, meshes, how)
    stage.to_empty(device="cpu")
    replicas = meshes.fsdp["dp_replicate"] if world_size > 1 and not sharded else meshes.fsdp
    model = OneStageModel(stage, keep_gathered=True) if sharded else ReplicatedModel(stage, torch.float32, replicas)
    if recipe is Fp8Recipe.tensorwise:
        model.fp8 = Fp8Weights(model.stages)
    optimizer = build_optimizer(model.parameters, OptimConfig(lr=1e-3))
    init_weights(stage, 0)
    for name, parameter in model.parameters.items():
        if name.endswith("k_proj.weight"):  # products share a scale, whatever the size of their weights
            local(parameter.detach()).mul_(4)
    state = training_state(model.parameters, optimizer.state)
    start = {name: _whole(tensor).clone() for name, tensor in state.items() if name.startswith("model.")}
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(STEPS):
        ids = torch.randint(0, VOCAB, (2, 2, 33), generator=draw)
        micro_batches = [
            {
                "x": row[:, :-1].contiguous(),
                "labels": row[:, 1:].contiguous(),
                "position_ids": torch.arange(32).expand(2, 32),
            }
            for row in ids
        ]
        model.forward_backward(micro_batches, 1 / (4 * 32))
        norm = local_square_sum(model.counted, world_size)
        dist.all_reduce(norm)
        one, zero = torch.ones(()), torch.zeros(())
        optimizer.step(one * 1e-3, one, zero, model.copies)
        model.after_update()
        for parameter in model.parameters.values():
            parameter.grad = None
        losses.append((model.statistics[0].item() / 128, norm.sqrt().item()))
    parts = [p.to_local() if isinstance(p, DTensor) else p.detach() for p in model.parameters.values()]
    wrapped = sum(type(part) is not torch.Tensor for part in parts)
    kinds = {type(local(tensor)) for tensor in state.values()}
    moved = max((_whole(state[name]) - before).abs().max().item() for name, before in start.items())
    return {"losses": losses, "wrapped": wrapped, "kinds": kinds, "start": start, "moved": moved}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


@pytest.fixture(scope="module")
def exact() -> dict[str, Any]:
    return in_ranks(_train, 1, None)[0]


@pytest.mark.parametrize(
    ("recipe", "world_size", "sharded"),
    [
        (Fp8Recipe.tensorwise, 2, True),
        (Fp8Recipe.rowwise, 2, True),
        (Fp8Recipe.tensorwise, 1, True),
        (Fp8Recipe.tensorwise, 2, False),
        (Fp8Recipe.tensorwise, 1, False),
    ],
)
def test_fp8_trains_like_fp32_but_for_rounding(
    recipe: Fp8Recipe, world_size: int, sharded: bool, exact: dict[str, Any]
) -> None:
    found = in_ranks(_train, world_size, recipe, sharded)[0]
    for name, tensor in exact["start"].items():
        assert torch.equal(found["start"][name], tensor), name
    for (loss, norm), (expected_loss, expected_norm) in zip(found["losses"], exact["losses"], strict=True):
        assert loss == pytest.approx(expected_loss, rel=0.02) and loss != expected_loss
        assert norm == pytest.approx(expected_norm, rel=0.2)
    assert found["moved"] > 1e-4, "the checkpoint's tensors are those that are trained"
    assert found["kinds"] == {torch.Tensor}, "checkpoints hold plain tensors"
    assert (found["wrapped"] > 0) == (recipe is Fp8Recipe.tensorwise and sharded)


def test_gathered_weights_are_scaled_like_replicated_ones() -> None:
    gathered, replicated = (in_ranks(_train, 2, Fp8Recipe.tensorwise, sharded)[0] for sharded in (True, False))
    for one, other in zip(gathered["losses"], replicated["losses"], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
