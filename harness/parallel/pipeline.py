"""Runs the stages of a pipeline: every rank goes through the timetable, and neighbours exchange what they made.

torch.distributed.pipelining is not used, since it cuts one batch into equal parts: here every micro batch comes with tensors
of its own, whose shapes differ (where its documents end). What stands for it here is the timetable and a batch of sends and
receives after each of its ticks.
"""

from collections import deque
from collections.abc import Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import nn

from harness.model.stage import TIED_HEAD, Stage
from harness.parallel.local import local
from harness.parallel.model import Inputs, ParallelModel, finish_with_backward
from harness.parallel.timetable import Action, Turn, own_stages, turns


class PipelineModel(ParallelModel):
    """This rank's stages of a model whose layers are divided over the ranks of a pipeline."""

    def __init__(
        self,
        stages: list[Stage],
        group: dist.ProcessGroup,
        *,
        hidden_shape: tuple[int, int, int],
        dtype: torch.dtype,
        device: torch.device,
        keep_gathered: bool,
    ) -> None:
        """Collective over `group`, the ranks of the pipeline in order. `stages` are those that `own_stages` names: one for
        each rank makes 1F1B, several make the interleaved schedule.

        `hidden_shape` and `dtype` are what travels between stages: [micro batch, this rank's tokens, hidden]. With
        `keep_gathered`, weights stay gathered and gradients unreduced between the micro batches of a step.
        """
        self.stages = stages
        self._group = group
        self._rank, self._pp = dist.get_rank(group), dist.get_world_size(group)
        numbers = own_stages(self._rank, self._pp, len(stages))
        self._numbered = dict(zip(numbers, stages, strict=True))
        assert [stage.is_first for stage in stages] == [number == 0 for number in numbers]
        assert [stage.is_last for stage in stages] == [number == self._pp * len(stages) - 1 for number in numbers]
        self._hidden = torch.empty(hidden_shape, dtype=dtype, device="meta")
        self._device = device
        self._keep_gathered = keep_gathered
        # NCCL connects a group in its first operation, which all of its ranks must take part in
        dist.all_reduce(torch.zeros(1, device=device), group=group)

    @cached_property
    def counted(self) -> list[nn.Parameter]:
        copied = None if self.stages[0].is_first else self._tied
        return [parameter for parameter in self.parameters.values() if parameter is not copied]

    def forward_backward(self, micro_batches: Sequence[Inputs], scale: float) -> None:
        """See the base class; there must be no gradients yet. Collective over the pipeline and over each stage's ranks."""
        self.begin_pass()
        self._run(micro_batches, scale)
        self._add_tied_gradients()

    @torch.no_grad()
    def evaluate(self, micro_batches: Sequence[Inputs]) -> None:
        self.begin_pass()
        self._run(micro_batches, None)
        self.reshard()

    def _run(self, micro_batches: Sequence[Inputs], scale: float | None) -> None:
        """All passes of all micro batches; without `scale` the forward passes alone."""
        mail = _Mail(self._group, self._hidden, self._device)
        passes = _Passes(self._numbered, micro_batches, scale, mail, self._keep_gathered)
        for turn in turns(self._rank, self._pp, len(self.stages), len(micro_batches), scale is not None):
            made = None
            if turn.action is not None:
                made = passes.backward(turn.action) if turn.action.backward else passes.forward(turn.action)
            mail.exchange(turn, made)
        mail.close()

    @property
    def _tied(self) -> nn.Parameter | None:
        """The weight that both the first and the last stage hold, where this rank has one of them."""
        _, embedding = TIED_HEAD
        if not self.stages[0].lm.config.tie_word_embeddings:
            return None
        return self.parameters.get(embedding)

    @torch.no_grad()
    def _add_tied_gradients(self) -> None:
        """Give both copies of a tied weight the sum of their gradients, the same bits on either side."""
        tied = self._tied
        if tied is None:
            return
        assert tied.grad is not None
        own = local(tied.grad)
        if own.numel() == 0:  # a rank without a share of it has none of the copy either
            return
        others = torch.empty_like(own)
        peer = self._pp - 1 - self._rank
        both = [
            dist.P2POp(dist.isend, own, group=self._group, group_peer=peer),
            dist.P2POp(dist.irecv, others, group=self._group, group_peer=peer),
        ]
        for work in dist.batch_isend_irecv(both):
            work.wait()
        own += others


class _Passes:
    """Forward and backward passes of one step, with what the backward passes still need."""

    def __init__(
        self,
        stages: dict[int, Stage],
        micro_batches: Sequence[Inputs],
        scale: float | None,
        mail: "_Mail",
        keep_gathered: bool,
    ) -> None:
        self._stages = stages
        self._micro_batches = micro_batches
        self._scale = scale
        self._mail = mail
        self._keep_gathered = keep_gathered
        self._open: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        """Input and output by stage and micro batch."""

    def forward(self, action: Action) -> torch.Tensor | None:
        """What the next stage gets."""
        stage, inputs = self._stages[action.stage], self._micro_batches[action.micro_batch]
        x = inputs["x"]
        if not stage.is_first:
            x = self._mail.take(action).requires_grad_(self._scale is not None)
        output = stage(**{**inputs, "x": x})
        if self._scale is not None:
            self._open[action.stage, action.micro_batch] = x, output
        return None if stage.is_last else output.detach()

    def backward(self, action: Action) -> torch.Tensor | None:
        """What the stage before gets."""
        stage = self._stages[action.stage]
        x, output = self._open.pop((action.stage, action.micro_batch))
        if self._keep_gathered:
            finish_with_backward(stage, action.micro_batch == len(self._micro_batches) - 1)
        if stage.is_last:
            assert self._scale is not None
            (output.sum() * self._scale).backward()
        else:
            output.backward(self._mail.take(action))
        return x.grad


class _Mail:
    """Messages to and from the neighbours. They travel while the rank computes; they are waited for where they are used."""

    def __init__(self, group: dist.ProcessGroup, hidden: torch.Tensor, device: torch.device) -> None:
        """All messages have shape and type of `hidden`."""
        self._group = group
        self._hidden = hidden
        self._device = device
        self._arriving: dict[Action, tuple[int, torch.Tensor]] = {}
        """By what they are for: number of the batch that brings them, and where to."""
        self._under_way: deque[tuple[list[dist.Work], list[torch.Tensor]]] = deque()
        """Batches of messages that nobody has waited for yet, with what they read or write."""
        self._batches_over = 0

    def exchange(self, turn: Turn, made: torch.Tensor | None) -> None:
        """Post the messages of one turn."""
        operations = []
        if turn.send_to is not None:
            assert made is not None
            assert made.shape == self._hidden.shape and made.dtype == self._hidden.dtype, (made.shape, made.dtype)
            operations.append(dist.P2POp(dist.isend, made.contiguous(), group=self._group, group_peer=turn.send_to))
        batch = self._batches_over + len(self._under_way)
        for sender, action in turn.receives:
            place = torch.empty_like(self._hidden, device=self._device)
            operations.append(dist.P2POp(dist.irecv, place, group=self._group, group_peer=sender))
            self._arriving[action] = batch, place
        if operations:
            tensors = [operation.tensor for operation in operations]
            self._under_way.append((dist.batch_isend_irecv(operations), tensors))

    def take(self, action: Action) -> torch.Tensor:
        """What has been sent for `action`. The device waits for it (on CPU the caller does)."""
        batch, message = self._arriving.pop(action)
        self._wait(batch + 1)
        return message

    def close(self) -> None:
        """Let the device wait for whatever is still being sent."""
        self._wait(self._batches_over + len(self._under_way))

    def _wait(self, batches: int) -> None:
        """Wait for the first `batches`. Each ends before those posted after it, so that this costs no more than the last."""
        while self._batches_over < batches:
            works, _ = self._under_way.popleft()
            for work in works:
                work.wait()
            self._batches_over += 1
