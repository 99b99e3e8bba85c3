"""The grid of ranks and a rank's place in it."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from harness.config.layout import layout
from harness.config.schema import RootConfig


@dataclass(frozen=True)
class Grid:
    """Sizes of the parallel dimensions, outermost first: ranks that differ only in tp are neighbours."""

    pp: int
    dp_replicate: int
    dp_shard: int
    cp: int
    tp: int

    @property
    def world_size(self) -> int:
        return self.stage_size * self.pp

    @property
    def stage_size(self) -> int:
        """Ranks that together hold one pipeline stage and its copies."""
        return self.dp_size * self.cp * self.tp

    @property
    def dp_size(self) -> int:
        """Number of groups of ranks that read different samples."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp_size(self) -> int:
        """Ranks whose gradients are averaged: each sees other tokens."""
        return self.dp_size * self.cp

    def dp_rank(self, rank: int) -> int:
        """Which samples global rank `rank` reads: from 0 to dp_size."""
        return rank // (self.cp * self.tp) % self.dp_size

    def cp_rank(self, rank: int) -> int:
        return rank // self.tp % self.cp

    def pp_rank(self, rank: int) -> int:
        return rank // self.stage_size


def resolve(config: RootConfig, world_size: int) -> Grid:
    """The grid of a config for the ranks that were started. Raises ValueError where the dimensions do not make them."""
    grid = Grid(**layout(config).parallel)
    if grid.world_size != world_size or grid.dp_shard < 1:
        sizes = " x ".join(f"{name}={size}" for name, size in layout(config).parallel.items())
        raise ValueError(f"parallel: {sizes} do not multiply to the {world_size} ranks that were started")
    return grid


@dataclass(frozen=True)
class Meshes:
    """The groups that this rank communicates in. None where the dimension has size one."""

    fsdp: DeviceMesh
    """What FSDP2 works on: the ranks that shard, or replicas x ranks that shard."""
    tp: DeviceMesh | None
    cp: dist.ProcessGroup | None
    pp: dist.ProcessGroup | None


def build_meshes(grid: Grid, device_type: str) -> Meshes:
    """Collective over all ranks. Context-parallel ranks also shard the weights, so that they are one dimension to FSDP2."""
    sizes = {"pp": grid.pp, "dp_replicate": grid.dp_replicate, "shard": grid.dp_shard * grid.cp, "tp": grid.tp}
    kept = {name: size for name, size in sizes.items() if size > 1 or name == "shard"}
    mesh = init_device_mesh(device_type, tuple(kept.values()), mesh_dim_names=tuple(kept))
    cp = None
    if grid.cp > 1:
        outer, inner = grid.world_size // (grid.cp * grid.tp), grid.tp
        cp = init_device_mesh(device_type, (outer, grid.cp, inner), mesh_dim_names=("outer", "cp", "inner"))
    return Meshes(
        fsdp=mesh["dp_replicate", "shard"] if grid.dp_replicate > 1 else mesh["shard"],
        tp=mesh["tp"] if grid.tp > 1 else None,
        cp=None if cp is None else cp.get_group("cp"),
        pp=mesh.get_group("pp") if grid.pp > 1 else None,
    )
