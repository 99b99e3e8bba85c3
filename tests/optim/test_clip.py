import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

from harness.optim.clip import clip_scale, local_square_sum
from tests.ranks import in_ranks


def _parameters() -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    parameters = []
    for shape in ((7, 6), (6,), (5, 4), (3,)):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        parameter.grad = torch.randn(shape, generator=draw)
        parameters.append(parameter)
    return parameters


def _norm_on_mixed_meshes(rank: int, world_size: int) -> tuple[float, bool]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    layouts = [(mesh, [Shard(0), Shard(1)]), (mesh["dp"], [Shard(0)]), (mesh, [Replicate(), Shard(0)]), None]
    mixed = []
    for parameter, layout in zip(_parameters(), layouts, strict=True):
        if layout is not None:
            gradient = parameter.grad
            parameter = torch.nn.Parameter(distribute_tensor(parameter.detach(), *layout))
            parameter.grad = distribute_tensor(gradient, *layout)
        mixed.append(parameter)
    squares = local_square_sum(mixed, world_size)
    dist.all_reduce(squares)
    unreduced = mixed[0]
    unreduced.grad = unreduced.grad.redistribute(placements=[Shard(0), Replicate()])
    unreduced.grad = torch.distributed.tensor.DTensor.from_local(
        unreduced.grad.to_local(), mesh, [Shard(0), Partial()], shape=unreduced.shape, stride=unreduced.stride()
    )
    try:
        local_square_sum(mixed, world_size)
    except AssertionError:
        return math.sqrt(squares.item()), True
    return math.sqrt(squares.item()), False


def test_norm_is_global_whatever_the_meshes() -> None:
    expected = torch.cat([p.grad.flatten() for p in _parameters()]).norm().item()
    for norm, refuses_partial_sums in in_ranks(_norm_on_mixed_meshes, 4):
        assert norm == pytest.approx(expected, rel=1e-6)
        assert refuses_partial_sums


def test_norm_of_bf16_is_summed_in_more() -> None:
    parameter = torch.nn.Parameter(torch.zeros(10_001))
    parameter.grad_dtype = torch.bfloat16
    parameter.grad = torch.ones(10_001, dtype=torch.bfloat16)
    assert local_square_sum([parameter], 1).item() == pytest.approx(10_001, rel=1e-6)


def test_nothing_has_norm_zero() -> None:
    for parameters in ([], [torch.nn.Parameter(torch.ones(3))]):
        found = local_square_sum(parameters, 4)
        assert found.item() == 0.0 and found.dtype == torch.float64 and found.ndim == 0


@pytest.mark.parametrize(
    ("norm", "limit", "expected"), [(0.5, 1.0, 1.0), (4.0, 1.0, 0.25), (4.0, 0.0, 1.0), (0.0, 1.0, 1.0)]
)
def test_scale_only_ever_shrinks(norm: float, limit: float, expected: float) -> None:
    found = clip_scale(torch.tensor(norm, dtype=torch.float64), limit)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected, rel=1e-6)
