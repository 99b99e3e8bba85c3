"""What torch.compile sees of the layers: one graph for each kind of layer, whatever is recomputed or divided.

A layer that breaks apart, or is left out, still computes the right thing, only slowly: nothing but this would tell.
The graphs are traced and differentiated, but not made into kernels (`aot_eager`), which takes a GPU to be of use.
"""

from functools import partial
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from harness.config.schema import ActivationCheckpoint, AttentionKernel, RootConfig
from harness.model.attention import choose_attention
from harness.model.init import init_weights
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.mesh import build_meshes, resolve
from harness.parallel.sequence import shard_sequence
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model

KINDS = 2
"""Of layers: with and without rotary positions."""


def _graphs(rank: int, world_size: int, mode: ActivationCheckpoint, parallel: dict[str, int]) -> dict[str, Any]:
    config = RootConfig(model=tiny_model())
    config.train.global_batch_size, config.cluster.ranks_per_node = 8, world_size
    for name, size in parallel.items():
        setattr(config.parallel, name, size)
    grid = resolve(config, world_size)
    meshes = build_meshes(grid, "cpu")
    attention = choose_attention(
        torch.device("cpu"), torch.float32, wanted=AttentionKernel.auto, document_mask=True, head_dim=16, heads=4,
        kv_heads=2, cp=grid.cp, cp_rank=grid.cp_rank(rank), cp_group=meshes.cp,
    )  # fmt: skip
    torch.compile = partial(torch.compile, backend="aot_eager")  # type: ignore[assignment]
    stage = build_stage(config.model, attention.name, range(4), TokenLoss(z_loss=0.0, tp_mesh=meshes.tp))
    parallelize(stage, meshes, Treatment(torch.float32, None, True, mode, False, sharded=grid.fsdp_size > 1))
    stage.to_empty(device="cpu")
    init_weights(stage, 0)
    ids = torch.randint(0, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0)).numpy()
    positions = torch.arange(32).expand(2, 32).numpy()
    own = [shard_sequence(array, grid.cp, grid.cp_rank(rank)) for array in (ids[:, :-1], ids[:, 1:], positions)]
    x, labels, position_ids = map(torch.from_numpy, own)
    for _ in range(2):
        loss = stage(x, labels=labels, position_ids=position_ids, **attention.inputs(positions))
        loss.sum().backward()
    return {"graphs": counters["stats"]["unique_graphs"], "breaks": dict(counters["graph_break"])}


NONE, SELECTIVE, FULL = ActivationCheckpoint.none, ActivationCheckpoint.selective, ActivationCheckpoint.full


@pytest.mark.parametrize(
    ("mode", "parallel"),
    [
        (NONE, {}),
        (SELECTIVE, {}),
        (FULL, {}),
        (NONE, {"tp": 2}),
        (SELECTIVE, {"tp": 2}),
        (FULL, {"tp": 2}),
        (SELECTIVE, {"cp": 2}),
        (SELECTIVE, {"dp_shard": 2}),
    ],
)
def test_every_kind_of_layer_is_one_graph(mode: ActivationCheckpoint, parallel: dict[str, int]) -> None:
    for found in in_ranks(_graphs, 2 if parallel else 1, mode, parallel):
        assert found == {"graphs": KINDS, "breaks": {}}
