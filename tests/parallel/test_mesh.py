import pytest

from harness.config.schema import ParallelConfig
from harness.parallel.mesh import Grid, resolve


def test_shards_take_what_is_left() -> None:
    grid = resolve(ParallelConfig(dp_replicate=2, tp=2), 16)
    assert grid == Grid(dp_replicate=2, dp_shard=4, tp=2)
    assert grid.dp_size == 8
    assert [grid.dp_rank(rank) for rank in range(16)] == [rank // 2 for rank in range(16)]


@pytest.mark.parametrize(
    ("parallel", "world_size"), [(ParallelConfig(tp=3), 4), (ParallelConfig(dp_shard=4), 2), (ParallelConfig(tp=2), 1)]
)
def test_what_does_not_multiply_is_refused(parallel: ParallelConfig, world_size: int) -> None:
    with pytest.raises(ValueError, match=rf"do not multiply to the {world_size} ranks"):
        resolve(parallel, world_size)
