"""One optimizer step: forward and backward over the micro batches, one reduction, the update.

The host queues the whole step and reads nothing back: clipping, the judgement whether to skip, and the update happen on
the device. What came of it is read one step later, when it has long been there.
"""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from harness.data.loader import StepBatch
from harness.optim.clip import clip_scale, local_square_sum
from harness.optim.ema import Ema
from harness.optim.optimizer import Optimizer
from harness.optim.spike import SpikeDetector
from harness.optim.statistics import group_of, module_statistics
from harness.parallel.model import ParallelModel
from harness.train.inputs import InputMaker
from harness.train.timeline import Mark, Timeline

_SUMS = ("loss", "squares", "stop", "fenced", "z", "targets")
"""What one all-reduce adds up over the ranks."""


@dataclass(frozen=True)
class StepResult:
    """The same on all ranks, but for the times."""

    loss: float
    """Mean cross-entropy over all tokens of the global batch that have a target."""
    grad_norm: float
    """Global norm before clipping."""
    skipped: str | None
    """Why nothing was updated: "not finite" or "spike"; None: it was."""
    stop: bool
    """Some rank was asked to stop."""
    fenced: bool
    """Some rank knows of a newer attempt of this run."""
    seconds: dict[str, float]
    """This rank's device time by phase: forward_backward, comm_wait, optimizer."""
    statistics: dict[str, float] | None
    """Of gradients, weights and logits, in steps that were asked for them."""


@dataclass(frozen=True)
class PendingStep:
    """A step that is queued."""

    values: torch.Tensor
    """On the host once the last mark is reached: loss, gradient norm, skip, stop, fenced, then statistics."""
    marks: tuple[Mark, Mark, Mark, Mark]
    """Begin; gradients there; reduction done; update done."""
    statistic_names: tuple[str, ...]
    timeline: Timeline

    @property
    def begin(self) -> Mark:
        return self.marks[0]

    @property
    def end(self) -> Mark:
        return self.marks[-1]

    def result(self) -> StepResult:
        """Wait for the step and read it."""
        self.timeline.wait(self.end)
        loss, norm, skip, stop, fenced, *rest = self.values.tolist()
        reason = "spike" if math.isfinite(loss) and math.isfinite(norm) else "not finite"
        phases = zip(("forward_backward", "comm_wait", "optimizer"), self.marks, self.marks[1:], strict=False)
        return StepResult(
            loss=loss,
            grad_norm=norm,
            skipped=reason if skip else None,
            stop=stop > 0,
            fenced=fenced > 0,
            seconds={phase: self.timeline.seconds(begin, end) for phase, begin, end in phases},
            statistics=dict(zip(self.statistic_names, rest, strict=True)) if self.statistic_names else None,
        )


class Stepper:
    """Everything a step needs."""

    def __init__(
        self,
        model: ParallelModel,
        optimizer: Optimizer,
        spikes: SpikeDetector,
        ema: Ema | None,
        make_inputs: InputMaker,
        *,
        tokens_per_step: int,
        clip_grad_norm: float,
        fsdp_size: int,
        tp: int,
        stage_size: int,
    ) -> None:
        """`fsdp_size` ranks average their gradients; `stage_size` ranks together hold one pipeline stage. Collective."""
        self.model = model
        self.optimizer = optimizer
        self.make_inputs = make_inputs
        self.tokens_per_step = tokens_per_step
        self._spikes = spikes
        self._ema = ema
        self._limit = clip_grad_norm
        self._tp = tp
        self._stage_size = stage_size
        # FSDP averages gradients over its ranks; the loss is a mean over all their tokens, see `_per_target`
        self._loss_scale = fsdp_size / tokens_per_step
        self._device = make_inputs.device
        self._timeline = Timeline(self._device)
        self._lr = torch.zeros((), dtype=torch.float32, device=self._device)
        self._counted = self._own_counted()
        self._groups = self._all_groups()

    def _own_counted(self) -> dict[str, nn.Parameter]:
        """The parameters whose norms this rank reports."""
        counted = {id(parameter) for parameter in self.model.counted}
        return {name: p for name, p in self.optimizer.parameters.items() if id(p) in counted}

    def _all_groups(self) -> list[str]:
        """Groups of `module_statistics` over all pipeline stages. Collective; here rather than in a step, which it would
        hold up."""
        own = list(dict.fromkeys(group_of(name) for name in self._counted))
        of_ranks = [own] * dist.get_world_size()
        dist.all_gather_object(of_ranks, own)
        return list(dict.fromkeys(group for groups in of_ranks for group in groups))

    def mark(self) -> Mark:
        """Where the device stands now."""
        return self._timeline.mark()

    def seconds(self, begin: Mark, end: Mark) -> float:
        """Device time between two marks; waits until the device has reached the later one."""
        return self._timeline.seconds(begin, end)

    def run(self, batch: StepBatch, lr: float, *, stop: bool, fenced: bool, with_statistics: bool) -> PendingStep:
        """Queue the training on one global batch. `stop` and `fenced` are this rank's view; the result has everybody's."""
        inputs = [self.make_inputs(micro) for micro in batch.micro_batches]
        begin = self._timeline.mark()
        self.model.forward_backward(inputs, self._loss_scale)
        sums = self._sums(stop, fenced)
        computed = self._timeline.mark()
        dist.all_reduce(sums)
        more = self._per_target(sums)
        loss, norm = sums[0] / self.tokens_per_step * more, sums[1].sqrt() * more
        reduced = self._timeline.mark()
        skip = self._spikes.judge(loss, norm).double()
        names, statistics = self._statistics(sums, more) if with_statistics else ((), sums[:0])
        self._lr.fill_(lr)
        self.optimizer.step(self._lr, (clip_scale(norm, self._limit) * more).float(), skip.float(), self.model.copies)
        self.model.after_update()
        if self._ema is not None:
            self._ema.update(skip.float())
        for parameter in self.optimizer.parameters.values():
            parameter.grad = None
        values = torch.cat([torch.stack([loss, norm, skip]), sums[2:4], statistics]).to("cpu", non_blocking=True)
        return PendingStep(values, (begin, computed, reduced, self._timeline.mark()), names, self._timeline)

    def _per_target(self, sums: torch.Tensor) -> torch.Tensor:
        """What loss and gradients per token are to be multiplied by to be per token that has a target, over all ranks alike:
        exactly 1 where all have one. Only the reduction tells how many have, so it comes after the backward pass."""
        return self.tokens_per_step / sums[5].clamp(min=1)

    def _sums(self, stop: bool, fenced: bool) -> torch.Tensor:
        """This rank's shares of what `_SUMS` names: fp64 on the device, without a copy from the host."""
        sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=self._device)
        statistics = self.model.statistics
        if statistics is not None:  # every tensor-parallel rank has the whole sum
            sums[0] = statistics[0] / self._tp
            sums[4] = statistics[1] / self._tp
            sums[5] = statistics[3] / self._tp
        sums[1] = local_square_sum(self.model.counted, self._stage_size)
        sums[2].fill_(float(stop))
        sums[3].fill_(float(fenced))
        return sums

    def _statistics(self, sums: torch.Tensor, more: torch.Tensor) -> tuple[tuple[str, ...], torch.Tensor]:
        """Norms by module, and the logits' figures. Collective; costs another two small reductions."""
        groups, squares = module_statistics(self._counted, self._stage_size)
        everything = torch.zeros(len(self._groups), 2, dtype=torch.float64, device=self._device)
        for row, group in enumerate(groups):
            everything[self._groups.index(group)] += squares[row]
        dist.all_reduce(everything)
        norms = everything.sqrt()
        norms[:, 0] *= more  # the gradients'
        largest = torch.full((1,), -math.inf, dtype=torch.float64, device=self._device)
        if (logits := self.model.statistics) is not None:
            largest.copy_(logits[2:3])
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        names = [f"{kind}/{group}" for group in self._groups for kind in ("grad_norm", "weight_norm")]
        mean_square = (sums[4] / sums[5].clamp(min=1)).view(1)
        return (
            ("logits/max", "logits/mean_square_lse", *names),
            torch.cat([largest, mean_square, norms.view(-1)]),
        )
