"""A weight that FSDP2 gathers in FP8: a quarter of the bytes of fp32, cast once on the rank that holds the part."""

from typing import Any

import torch
from torch.utils import _pytree as pytree

from harness.fp8.kernels import VALUE, cast_into

_KEEP = {
    torch.ops.aten.detach.default,
    torch.ops.aten.empty_like.default,
    torch.ops.aten.new_zeros.default,
    torch.ops.aten.slice.Tensor,
    torch.ops.aten.copy_.default,
    torch.ops.aten.view.default,
    torch.ops.aten.as_strided.default,
    torch.ops.aten._to_copy.default,
    torch.ops.aten._pin_memory.default,
    torch.ops.aten.split.Tensor,
    torch.ops.aten.clone.default,
}
"""What FSDP2 does to a parameter as it divides, pads and moves it: the results are such weights too."""


class GatheredInFp8(torch.Tensor):
    """Looks like the fp32 tensor inside, and is it for all that is computed, until FSDP2 gathers it.

    FSDP2 calls the two methods named `fsdp_...`; every rank must hold the same `scale` by then."""

    _tensor: torch.Tensor
    scale: torch.Tensor | None
    """0-dim fp32; set by `harness.fp8.weights.Fp8Weights.scale_gathering`."""

    @staticmethod
    def __new__(cls, tensor: torch.Tensor) -> "GatheredInFp8":
        self: Any = torch.Tensor._make_wrapper_subclass(
            cls, tensor.size(), strides=tensor.stride(), storage_offset=tensor.storage_offset(), dtype=tensor.dtype,
            layout=tensor.layout, device=tensor.device, requires_grad=tensor.requires_grad,
        )  # fmt: skip
        return self

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor
        self.scale = None

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = pytree.tree_map_only(cls, lambda weight: weight._tensor, (args, kwargs or {}))
        found = func(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, cls, found) if func in _KEEP else found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"GatheredInFp8({self._tensor})"

    def fsdp_pre_all_gather(self, mesh: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
        """What this rank sends, and what it will know of it afterwards."""
        assert self.scale is not None, "its scale is set before the first pass and after every update"
        part = torch.empty_like(self._tensor, dtype=VALUE)
        cast_into(self._tensor, self.scale, part)
        return (part,), self.scale

    def fsdp_post_all_gather(
        self,
        outputs: tuple[torch.Tensor, ...],
        scale: torch.Tensor,
        dtype: torch.dtype,
        *,
        out: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]] | None:
        """The whole weight from what all ranks sent. With `out`, a weight from before that has its memory already."""
        if out is not None:
            out._scale = scale  # type: ignore[attr-defined]
            return None
        from torchao.float8.float8_training_tensor import Float8TrainingTensor

        return Float8TrainingTensor(outputs[0], scale, dtype, None), outputs
