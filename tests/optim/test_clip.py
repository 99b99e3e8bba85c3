import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from harness.optim.clip import clip_factor, local_square_sum, scale_gradients
from tests.ranks import in_ranks


def _parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    parameters = []
    for shape in ((7, 6), (6,), (5, 4), (3,)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=draw)
        parameters.append(parameter)
    return parameters


def _norm_on_mixed_meshes(rank: int, world_size: int) -> tuple[float, float]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layouts = [(mesh, [Shard(0), Shard(1)]), (mesh["dp"], [Shard(0)]), (mesh, [Replicate(), Shard(0)]), None]
    mixed = []
    for parameter, layout in zip(_parameters(), layouts, strict=True):
        if layout is not None:
            gradient = parameter.grad
            parameter = torch.nn.Parameter(distribute_tensor(parameter.detach(), *layout))
            parameter.grad = distribute_tensor(gradient, *layout)
        mixed.append(parameter)

    def norm() -> float:
        squares = local_square_sum(mixed, world_size)
        dist.all_reduce(squares)
        return math.sqrt(squares.item())

    before = norm()
    scale_gradients(mixed, 0.25)
    return before, norm()


def test_norm_is_global_whatever_the_meshes() -> None:
    expected = torch.cat([p.grad.flatten() for p in _parameters()]).norm().item()
    for before, after in in_ranks(_norm_on_mixed_meshes, 4):
        assert before == pytest.approx(expected, rel=1e-6)
        assert after == pytest.approx(expected / 4, rel=1e-6)


def test_factor_only_ever_shrinks() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert clip_factor(4.0, 1.0) == pytest.approx(0.25, rel=1e-6)
    assert clip_factor(4.0, 0.0) == 1.0
