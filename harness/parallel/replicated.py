"""Data parallel without sharding: every rank holds all weights, and gradients are summed between the copies.

The layers compute with bf16 copies of the fp32 weights, which are written anew after each update. Nothing is gathered
and nothing is copied to be sent: FSDP2 over a single shard would move every weight and gradient several times.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from harness.model.stage import Stage
from harness.parallel.local import NO_COPIES, Copies, divided_like, local
from harness.parallel.model import Inputs, ParallelModel


class ReplicatedModel(ParallelModel):
    """The whole model on every data-parallel rank; each group of tensor-parallel ranks is one copy of it."""

    def __init__(self, stage: Stage, dtype: torch.dtype, replicas: DeviceMesh) -> None:
        """`stage` in fp32; `dtype` is what it computes in. `replicas`: the ranks that hold the same part as this one."""
        self.stages = [stage]
        self._dtype = dtype
        self._group = replicas.get_group() if replicas.size() > 1 else None
        self._copies: dict[str, nn.Parameter] | None = None
        self._in_fp8: dict[int, nn.Parameter] = {}
        """Those of the copies that are FP8, by the id of the master."""
        _ = self.parameters  # before the copies take their places

    def forward_backward(self, micro_batches: Sequence[Inputs], scale: float) -> None:
        """See the base class; there must be no gradients yet."""
        self.begin_pass()
        copies = self.computing()
        # one micro batch needs no sum, and its gradients no wider format before they are added to another rank's
        wide = torch.float32 if len(micro_batches) > 1 else None
        for copy in copies.values():
            copy.grad_dtype = wide
        ranks = 1 if self._group is None else self._group.size()
        last = len(micro_batches) - 1
        with _Reduction(copies, self._group) as reduction:
            for number, inputs in enumerate(micro_batches):
                reduction.active = number == last
                (self.stages[0](**inputs).sum() * (scale / ranks)).backward()
        for name, master in self.parameters.items():
            copy = copies[name]
            _add_up(copy)
            if copy is not master:
                master.grad_dtype = None
                master.grad, copy.grad = copy.grad, None

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Inputs]) -> None:
        self.begin_pass()
        self.computing()
        for inputs in micro_batches:
            self.stages[0](**inputs)

    @property
    def copies(self) -> Copies:
        if self._copies is None or self._copies is self.parameters:
            return NO_COPIES
        in_fp8 = self._in_fp8
        return {name: local(copy) for name, copy in self._copies.items() if id(self.parameters[name]) not in in_fp8}

    def after_update(self) -> None:
        """Cast those of the weights that are multiplied in FP8."""
        if self._in_fp8 and self.fp8 is not None:
            self.fp8.write_copies()

    def computing(self) -> dict[str, nn.Parameter]:
        """The weights that the layers compute with, by name. Made at the first use: until then weights may be filled in."""
        if self._copies is None:
            self._copies = self.parameters
            self._in_fp8 = {} if self.fp8 is None else self.fp8.copies(self._dtype)
            if self._dtype != torch.float32 or self._in_fp8:
                masters = {id(master): master for master in self.parameters.values()}
                made = {
                    key: self._in_fp8[key] if key in self._in_fp8 else _copy(master, self._dtype)
                    for key, master in masters.items()
                }
                self._copies = {name: made[id(master)] for name, master in self.parameters.items()}
                for module in self.stages[0].modules():
                    for key, parameter in module._parameters.items():
                        if parameter is not None:
                            module._parameters[key] = made[id(parameter)]
        return self._copies


class _Reduction:
    """Sums gradients between the ranks of a group as they become ready, a layer at a time."""

    def __init__(self, copies: dict[str, nn.Parameter], group: dist.ProcessGroup | None) -> None:
        self.active = False
        """Whether the gradients that come now are the last of the step."""
        self._group = group
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._works: list[tuple[dist.Work, torch.Tensor, list[nn.Parameter]]] = []
        self._buckets = list(_buckets(copies)) if group is not None else []

    def __enter__(self) -> "_Reduction":
        for bucket in self._buckets:
            waiting: set[int] = set()
            for parameter in bucket:
                hook = self._hook(bucket, waiting)
                self._hooks.append(parameter.register_post_accumulate_grad_hook(hook))
        return self

    def __exit__(self, *error: object) -> None:
        for hook in self._hooks:
            hook.remove()
        for work, flat, bucket in self._works:
            work.wait()
            _spread(flat, bucket)

    def _hook(self, bucket: list[nn.Parameter], ready: set[int]):  # type: ignore[no-untyped-def]
        def gradient_ready(parameter: torch.Tensor) -> None:
            if not self.active:
                return
            ready.add(id(parameter))
            if len(ready) == len(bucket):
                self._start(bucket)

        return gradient_ready

    def _start(self, bucket: list[nn.Parameter]) -> None:
        """Begin to sum a bucket in fp32, whatever the gradients are in."""
        for parameter in bucket:
            _add_up(parameter)
        gradients = [local(parameter.grad) for parameter in bucket if parameter.grad is not None]
        flat = torch.empty(sum(g.numel() for g in gradients), dtype=torch.float32, device=gradients[0].device)
        torch._foreach_copy_(list(flat.split([g.numel() for g in gradients])), [g.reshape(-1) for g in gradients])
        for parameter in bucket:
            parameter.grad = None  # the sum takes its place
        work = dist.all_reduce(flat, group=self._group, async_op=True)
        assert work is not None
        self._works.append((work, flat, bucket))


def _add_up(parameter: nn.Parameter) -> None:
    """Sum a gradient of which each tensor-parallel rank has a share, such as that of a norm over its part of the tokens."""
    gradient = parameter.grad
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        parameter.grad = gradient.redistribute(placements=parameter.placements)


def _spread(flat: torch.Tensor, bucket: list[nn.Parameter]) -> None:
    """Let the parts of `flat` be the gradients of the bucket's weights."""
    start = 0
    for parameter in bucket:
        own = local(parameter.detach())
        part = flat[start : start + own.numel()].view(own.shape)
        start += own.numel()
        parameter.grad_dtype = None
        if isinstance(parameter, DTensor):
            part = divided_like(part, parameter)
        parameter.grad = part


def _buckets(copies: dict[str, nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The weights of each layer, and all others together."""
    by_layer: dict[str, list[nn.Parameter]] = {}
    for name, parameter in copies.items():
        layer = ".".join(name.split(".")[:3]) if ".layers." in name else ""
        by_layer.setdefault(layer, []).append(parameter)
    yield from by_layer.values()


def _copy(master: nn.Parameter, dtype: torch.dtype) -> nn.Parameter:
    return nn.Parameter(master.detach().to(dtype))
