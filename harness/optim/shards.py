"""What this rank holds of a tensor that may be divided over a mesh."""

import torch
from torch.distributed.tensor import DTensor

from harness.parallel.local import local


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's part as one dimension: on the same memory, so writing to it writes to `tensor`. Must be contiguous."""
    # detached, or the compiler would tell views of matrices from views of vectors, and compile for each
    return local(tensor).view(-1).detach()


def flat_gradient(gradient: torch.Tensor) -> torch.Tensor:
    """This rank's part of a gradient as one dimension, for reading only: a copy where it is not contiguous."""
    return local(gradient).reshape(-1).detach()


def sharded_dimensions(tensor: torch.Tensor) -> tuple[int, ...]:
    """Dimensions of the tensor's mesh over which it is divided; over the others it is repeated.

    Raises AssertionError for a tensor whose parts still have to be added up: its numbers mean nothing yet.
    """
    if not isinstance(tensor, DTensor):
        return ()
    if any(placement.is_partial() for placement in tensor.placements):
        raise AssertionError("a gradient was left unreduced")
    return tuple(i for i, placement in enumerate(tensor.placements) if not placement.is_replicate())


def copies(tensor: torch.Tensor, ranks: int) -> int:
    """How many of `ranks` ranks, among which `tensor` is held, have the same numbers of it as this one."""
    parts = 1
    for dimension in sharded_dimensions(tensor):
        parts *= tensor.device_mesh.size(dimension)  # type: ignore[attr-defined]  # only a DTensor is divided
    return ranks // parts
