import pytest

from harness.config.schema import ParallelConfig, RootConfig
from harness.parallel.mesh import Grid, build_meshes, resolve
from tests.ranks import in_ranks
from tests.tiny import tiny_model


def config(parallel: ParallelConfig, ranks: int, model_type: str = "llama") -> RootConfig:
    model = tiny_model(model_type=model_type, no_rope_layer_interval=0)
    made = RootConfig(model=model, parallel=parallel)
    made.cluster.ranks_per_node = ranks
    made.train.global_batch_size = 16
    return made


def test_shards_take_what_is_left() -> None:
    grid = resolve(config(ParallelConfig(pp=2, dp_replicate=2, cp=2, tp=2), 64), 64)
    assert grid == Grid(pp=2, dp_replicate=2, dp_shard=4, cp=2, tp=2)
    assert (grid.world_size, grid.stage_size, grid.dp_size, grid.fsdp_size) == (64, 32, 8, 16)


def test_a_models_ranks_are_neighbours_by_tp_then_cp_then_data_then_stages() -> None:
    grid = Grid(pp=2, dp_replicate=1, dp_shard=2, cp=2, tp=2)
    assert [grid.dp_rank(rank) for rank in range(16)] == [0, 0, 0, 0, 1, 1, 1, 1] * 2
    assert [grid.cp_rank(rank) for rank in range(16)] == [0, 0, 1, 1] * 4
    assert [grid.pp_rank(rank) for rank in range(16)] == [0] * 8 + [1] * 8


def test_what_tensor_parallel_can_not_divide_is_sharded() -> None:
    grid = resolve(config(ParallelConfig(tp=2), 4, "olmo2"), 4)
    assert grid == Grid(pp=1, dp_replicate=1, dp_shard=4, cp=1, tp=1)


@pytest.mark.parametrize(
    ("parallel", "world_size"), [(ParallelConfig(tp=3), 4), (ParallelConfig(dp_shard=4), 2), (ParallelConfig(tp=2), 1)]
)
def test_what_does_not_multiply_is_refused(parallel: ParallelConfig, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"do not multiply to the {world_size} ranks"):
        resolve(config(parallel, world_size), world_size)


def _groups(rank: int, world_size: int) -> tuple[list[int], list[int], list[int]]:
    import torch.distributed as dist

    meshes = build_meshes(Grid(pp=1, dp_replicate=1, dp_shard=2, cp=2, tp=1), "cpu")
    assert meshes.cp is not None and meshes.tp is None and meshes.pp is None
    shards, cp = meshes.fsdp.get_group(), meshes.cp
    return dist.get_process_group_ranks(shards), dist.get_process_group_ranks(cp), [dist.get_rank(cp)]


def test_ranks_that_share_sequences_also_share_weights() -> None:
    for rank, (shards, cp, place) in enumerate(in_ranks(_groups, 4)):
        assert shards == [0, 1, 2, 3]
        assert cp == ([0, 1] if rank < 2 else [2, 3]) and place == [rank % 2]
