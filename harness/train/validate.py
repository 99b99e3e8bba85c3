"""Validations during training: when, and what comes of them."""

import time
from typing import Any

import torch
import torch.distributed as dist

from harness.observe.board import Activity
from harness.train.log import write_validation
from harness.train.setup import Trainer
from harness.train.validation import EarlyStop, Validation


class Validator:
    """Measures the loss on held-out text and says when it has stopped falling. Every method is collective."""

    def __init__(self, trainer: Trainer, validation: Validation) -> None:
        self._t = trainer
        self._validation = validation
        train = trainer.config.train
        self._every = train.eval_every
        earlier = self._earlier()
        self.early_stop = EarlyStop(train.early_stop_evals, [line["loss"] for line in earlier])
        self._last = max((int(line["step"]) for line in earlier), default=0)

    def due(self, step: int) -> bool:
        """Whether to validate after `step`: at the cadence, and after the last step."""
        return step > self._last and (step % self._every == 0 or step == self._t.config.train.steps)

    def run(self, step: int, tokens: int) -> bool:
        """Validate; whether training should end."""
        t = self._t
        t.clock.switch("eval")
        started, self._last = time.perf_counter(), step
        loss = self._loss()
        seconds = time.perf_counter() - started
        if t.place.rank == 0:
            print(f"step {step}: validation loss {loss:.4f} ({seconds:.1f} s)", flush=True)
            write_validation(t.run, step, tokens=tokens, loss=loss, seconds=seconds)
        t.clock.switch("other")
        return self.early_stop.seen(loss)

    def _earlier(self) -> list[dict[str, Any]]:
        """Validations up to here as rank 0 reads them: a file system may show other ranks less, and all must agree."""
        t = self._t
        lines: list[Any] = [None]
        if t.place.rank == 0:
            lines[0] = [line for line in t.run.validations() if line["step"] <= t.step]
        dist.broadcast_object_list(lines, src=0, group=t.saver.group)
        return list(lines[0])

    def _loss(self) -> float:
        """Mean cross-entropy over the held-out sequences."""
        t, model = self._t, self._t.stepper.model
        total = torch.zeros((), dtype=torch.float64, device=t.device)
        rank, grid = t.place.rank, t.grid
        for micro_batches in self._validation.batches(grid.dp_rank(rank), grid.dp_size):
            model.evaluate([t.stepper.make_inputs(micro) for micro in micro_batches])
            if (statistics := model.statistics) is not None:
                total = total + statistics[0] / grid.tp
            t.board.begin(Activity.validating)  # a batch further, and no longer compiling
        dist.all_reduce(total)
        return float(total) / self._validation.tokens
