"""The grid of ranks and this rank's place in it."""

import math
from dataclasses import dataclass

from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.config.schema import ParallelConfig


@dataclass(frozen=True)
class Grid:
    """Sizes of the parallel dimensions, outermost first: ranks that differ only in tp are neighbours."""

    dp_replicate: int
    dp_shard: int
    tp: int

    @property
    def dp_size(self) -> int:
        """Number of ranks, or groups of tensor-parallel ranks, that read different samples."""
        return self.dp_replicate * self.dp_shard

    def dp_rank(self, rank: int) -> int:
        """Which of them global rank `rank` belongs to."""
        return rank // self.tp


def resolve(parallel: ParallelConfig, world_size: int) -> Grid:
    """The grid for `world_size` ranks. Raises ValueError where the dimensions do not multiply to it."""
    others = parallel.dp_replicate * parallel.tp
    shard = world_size // others if parallel.dp_shard == -1 else parallel.dp_shard
    if shard < 1 or shard * others != world_size:
        raise ValueError(
            f"parallel: dp_replicate={parallel.dp_replicate} x dp_shard={parallel.dp_shard} x tp={parallel.tp} "
            f"do not multiply to the {world_size} ranks that were started"
        )
    return Grid(parallel.dp_replicate, shard, parallel.tp)


def build_mesh(grid: Grid, device_type: str) -> DeviceMesh:
    """A mesh of all ranks with the dimensions that are larger than one, and always dp_shard. Collective."""
    sizes = {"dp_replicate": grid.dp_replicate, "dp_shard": grid.dp_shard, "tp": grid.tp}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == "dp_shard"}
    assert math.prod(kept.values()) == grid.dp_size * grid.tp
    return init_device_mesh(device_type, tuple(kept.values()), mesh_dim_names=tuple(kept))


def data_parallel_mesh(mesh: DeviceMesh) -> DeviceMesh:
    """The part of the mesh that FSDP works on: one-dimensional, or replicas x shards for HSDP."""
    names = mesh.mesh_dim_names or ()
    return mesh["dp_replicate", "dp_shard"] if "dp_replicate" in names else mesh["dp_shard"]
