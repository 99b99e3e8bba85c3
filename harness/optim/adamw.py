"""AdamW: Adam with weight decay that does not pass through the moments (Loshchilov and Hutter, 2019)."""

import torch

from harness.optim.adam import Adam, Numbers, direction, keep_where_skipped, new_moments
from harness.optim.base import for_device
from harness.optim.shards import flat, flat_gradient
from harness.parallel.local import NO_COPIES, Copies


def adamw_(
    parameter: torch.Tensor,
    gradient: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    decay: torch.Tensor,
    numbers: Numbers,
    copy: torch.Tensor | None = None,
) -> None:
    """One update in place, written to `copy` too. All tensors flat and of one length, `decay` 0-dim; `gradient` fp32 or
    bf16, `copy` of any type, the rest fp32."""
    mean, square = new_moments(gradient, exp_avg, exp_avg_sq, numbers)
    updated = parameter * (1 - numbers.lr * decay) - numbers.lr * direction(mean, square, numbers)
    keep_where_skipped(numbers.skip, parameter, updated)
    if copy is not None:
        copy.copy_(parameter)
    keep_where_skipped(numbers.skip, exp_avg, mean)
    keep_where_skipped(numbers.skip, exp_avg_sq, square)


class AdamW(Adam):
    @torch.no_grad()
    def step(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, copies: Copies = NO_COPIES) -> None:
        if not self.parameters:
            return
        numbers, update = self._begin(lr, scale, skip), for_device(adamw_, self.device)
        for name, parameter in self.parameters.items():
            if parameter.grad is None or not (own := flat(parameter)).numel():
                continue
            copy = flat(copies[name]) if name in copies else None
            update(own, flat_gradient(parameter.grad), *self._moments(name), self._decay[name], numbers, copy)
