"""One optimizer step: forward and backward over the micro batches, one reduction, the update."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.optim import AdamW

from harness.data.loader import MicroBatch, StepBatch
from harness.model.attention import document_bounds
from harness.model.loss import LossModel
from harness.optim.clip import clip_factor, local_square_sum, scale_gradients
from harness.optim.groups import set_learning_rate


@dataclass(frozen=True)
class StepResult:
    """The same on all ranks."""

    loss: float
    """Mean over all tokens of the global batch."""
    grad_norm: float
    """Global norm before clipping."""
    finite: bool
    """Whether both are; otherwise nothing was updated."""
    stop: bool
    """Some rank was asked to stop."""
    fenced: bool
    """Some rank knows of a newer attempt of this run."""


@dataclass(frozen=True)
class Stepper:
    """Everything a step needs. `switch_phase` is told what the time goes to."""

    model: LossModel
    optimizer: AdamW
    device: torch.device
    dp_size: int
    tp: int
    tokens_per_step: int
    clip_grad_norm: float
    bounds_from_host: bool
    """Give attention the document boundaries, computed on the host so that the device need not wait for them."""
    switch_phase: Callable[[str], object]

    def run(self, batch: StepBatch, lr: float, *, stop: bool, fenced: bool) -> StepResult:
        """Train on one global batch. `stop` and `fenced` are this rank's view; the result has everybody's."""
        self.switch_phase("forward_backward")
        loss_sum = self._accumulate(batch.micro_batches)
        squares = local_square_sum(self.model.parameters(), dist.get_world_size())
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # or the kernels' time would be charged to the reduction
        self.switch_phase("comm_wait")
        loss, norm, stops, fences = self._reduce(loss_sum / self.tp, squares, stop, fenced)
        self.switch_phase("optimizer")
        finite = math.isfinite(loss) and math.isfinite(norm)
        if finite:
            self._update(lr, norm)
        self.optimizer.zero_grad(set_to_none=True)
        self.switch_phase("other")
        return StepResult(loss, norm, finite, stops, fences)

    def _accumulate(self, micro_batches: list[MicroBatch]) -> torch.Tensor:
        """Add up gradients of the global mean loss; this rank's sum of token losses (fp64 scalar)."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in micro_batches:
            loss = self.model(**self._to_device(micro))
            # FSDP averages gradients over the data-parallel ranks; the loss is a mean over all their tokens
            (loss * (self.dp_size / self.tokens_per_step)).backward()
            total += loss.detach()
        return total

    def _to_device(self, micro: MicroBatch) -> dict[str, Any]:
        inputs: dict[str, Any] = {
            name: torch.from_numpy(getattr(micro, name)).to(self.device, non_blocking=True)
            for name in ("input_ids", "labels", "position_ids")
        }
        if self.bounds_from_host:
            bounds = torch.from_numpy(document_bounds(micro.position_ids)).to(self.device, non_blocking=True)
            # the longest a document can be, not the longest there is: a constant does not recompile anything
            inputs |= {"cu_seq_lens_q": bounds, "max_length_q": micro.position_ids.shape[1]}
        return inputs

    def _reduce(
        self, loss_share: torch.Tensor, squares: torch.Tensor, stop: bool, fenced: bool
    ) -> tuple[float, float, bool, bool]:
        """The step's only collective outside of the model, and its only wait for the device."""
        flags = torch.tensor([float(stop), float(fenced)], dtype=torch.float64, device=self.device)
        values = torch.cat([torch.stack([loss_share, squares]), flags])
        dist.all_reduce(values)
        loss, square_sum, stops, fences = values.tolist()
        return loss / self.tokens_per_step, math.sqrt(square_sum), stops > 0, fences > 0

    def _update(self, lr: float, norm: float) -> None:
        factor = clip_factor(norm, self.clip_grad_norm)
        if factor < 1.0:
            scale_gradients(self.model.parameters(), factor)
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
