"""This rank's part of a tensor that may be divided over a mesh, and that may be wrapped by torchao."""

import torch
from torch.distributed.tensor import DTensor


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part as a plain tensor that shares its memory; a plain tensor is whole."""
    part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return unwrapped(part)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The same tensor, divided as it is, but without torchao's wrapping. Shares its memory."""
    tensor = tensor.detach()
    if not isinstance(tensor, DTensor):
        return unwrapped(tensor)
    part = tensor.to_local()
    if unwrapped(part) is part:
        return tensor
    return DTensor.from_local(
        unwrapped(part),
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )


def unwrapped(part: torch.Tensor) -> torch.Tensor:
    """What is inside of a weight that torchao casts to FP8 as FSDP2 gathers it: the fp32 tensor itself."""
    inner = getattr(part, "_tensor", None)
    return inner if isinstance(inner, torch.Tensor) else part
