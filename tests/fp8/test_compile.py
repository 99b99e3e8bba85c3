"""Layers in FP8 under torch.compile: one graph for each kind of layer, and the losses and gradients of the same uncompiled."""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from harness.config.schema import ActivationCheckpoint, AttentionKernel, Fp8Recipe, RootConfig
from harness.fp8 import convert, weights
from harness.fp8.weights import Fp8Weights
from harness.model.attention import choose_attention
from harness.model.init import init_weights
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.mesh import build_meshes, resolve
from harness.parallel.model import OneStageModel, ParallelModel
from harness.parallel.replicated import ReplicatedModel
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model

KINDS = 2
"""Of layers: with and without rotary positions."""
BACKEND = "aot_eager"


def _pass(rank: int, world_size: int, mode: ActivationCheckpoint, sharded: bool, compiled: bool) -> dict[str, Any]:
    weights.MIN_WIDTH = convert.MIN_WIDTH = 64
    config = RootConfig(model=tiny_model())
    config.train.global_batch_size, config.cluster.ranks_per_node = 8, world_size
    meshes = build_meshes(resolve(config, world_size), "cpu")
    attention = choose_attention(
        torch.device("cpu"), torch.float32, wanted=AttentionKernel.auto, document_mask=True, head_dim=16, heads=4,
        kv_heads=2,
    )  # fmt: skip
    torch.compile = partial(torch.compile, backend=BACKEND)  # type: ignore[assignment]
    stage = build_stage(config.model, attention.name, range(4), TokenLoss(z_loss=0.0))
    parallelize(stage, meshes, Treatment(torch.float32, Fp8Recipe.tensorwise, compiled, mode, False, sharded=sharded))
    stage.to_empty(device="cpu")
    model: ParallelModel = OneStageModel(stage, True) if sharded else ReplicatedModel(stage, torch.float32, meshes.fsdp)
    model.fp8 = Fp8Weights([stage])
    _ = model.parameters
    init_weights(stage, 0)
    ids = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    positions = torch.arange(32).expand(2, 32)
    inputs = {"x": ids[:, :-1], "labels": ids[:, 1:], "position_ids": positions, **attention.inputs(positions.numpy())}
    for _ in range(2):
        for parameter in model.parameters.values():
            parameter.grad = None
        model.forward_backward([inputs], 1 / 64)
    gradients = {name: weight.grad for name, weight in model.parameters.items()}
    norms = {name: float(g.norm()) for name, g in gradients.items() if g is not None}
    assert model.statistics is not None
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": dict(counters["graph_break"]),
        "loss": float(model.statistics[0]),
        "norms": norms,
    }


@pytest.mark.parametrize("sharded", [True, False])
@pytest.mark.parametrize("mode", [ActivationCheckpoint.none, ActivationCheckpoint.selective, ActivationCheckpoint.full])
def test_compiled_layers_compute_the_same_in_one_graph(mode: ActivationCheckpoint, sharded: bool) -> None:
    found = in_ranks(_pass, 1, mode, sharded, True)[0]
    expected = in_ranks(_pass, 1, mode, sharded, False)[0]
    assert (found["graphs"], found["breaks"]) == (KINDS, {})
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert found["norms"] == pytest.approx(expected["norms"], rel=0.02)
