"""This rank's part of a tensor that may be divided over a mesh, and that may be wrapped to be gathered in FP8."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

Copies = Mapping[str, torch.Tensor]
"""This rank's parts of some parameters, by name, in another type."""
NO_COPIES: Copies = MappingProxyType({})


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part as a plain tensor that shares its memory; a plain tensor is whole."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return unwrapped(part)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, divided as it is, but without that wrapping. Shares its memory."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return unwrapped(tensor)
    part = tensor.to_local()
    if unwrapped(part) is part:
        return tensor
    return divided_like(unwrapped(part), tensor)


def divided_like(part: torch.Tensor, tensor: DTensor) -> DTensor:
    """The tensor of which `part` is what this rank holds, if it is divided as `tensor` is. Shares the part's memory."""
    return DTensor.from_local(
        part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


def own_part(tensor: torch.Tensor) -> tuple[slice, ...]:
    """Which part of the full tensor this rank holds, one slice per dimension."""
    if not isinstance(tensor, DTensor):
        return tuple(slice(0, size) for size in tensor.shape)
    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    if 0 in shape:  # a rank without a share of a small tensor
        return tuple(slice(0, size) for size in shape)
    return tuple(slice(start, start + size) for start, size in zip(offset, shape, strict=True))


def unwrapped(part: torch.Tensor) -> torch.Tensor:
    """What is inside of a weight that FSDP2 gathers in FP8: the fp32 tensor itself."""
    inner = getattr(part, "_tensor", None)
    return inner if isinstance(inner, torch.Tensor) else part
