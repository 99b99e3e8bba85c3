"""What is written down of every step: the board, metrics.jsonl, the ledger, the run's own idea of its normal speed."""

import time
from dataclasses import dataclass

import torch

from harness.config.schema import NonFinitePolicy
from harness.data.skips import Skips
from harness.model.family import flops_per_token
from harness.run.journal import lines_lost, lines_waiting
from harness.train.exits import NotFinite
from harness.train.log import StepLog, write_stats
from harness.train.meters import PlannedPause
from harness.train.setup import Trainer
from harness.train.speed import Calibrator, peak_flops
from harness.train.step import StepResult

WORKING_PHASES = ("data_wait", "forward_backward", "comm_wait", "optimizer", "other")
"""What a step's time consists of; checkpoints and validations are counted apart."""


@dataclass(frozen=True)
class Settled:
    """A step whose outcome is known."""

    step: int
    batch: int
    """What it was trained on, see `harness.data.skips`."""
    tokens: int
    """Trained on so far, over all ranks and attempts."""
    lr: float
    result: StepResult
    phases: dict[str, float]
    """Seconds since the end of the step before, by phase."""

    @property
    def seconds(self) -> float:
        return sum(self.phases[phase] for phase in WORKING_PHASES)


class Records:
    """Writes down steps; raises NotFinite where too many in a row were skipped."""

    def __init__(self, trainer: Trainer) -> None:
        self._t = trainer
        config, world = trainer.config, trainer.place.world_size
        self._tokens_per_step = trainer.stepper.tokens_per_step
        self._log = (
            StepLog(trainer.run, config.train.steps, config.train.log_every) if trainer.place.rank == 0 else None
        )
        self.pause = PlannedPause(trainer.board)
        """Says when training pauses as planned."""
        self._calibrator = Calibrator(trainer.run.calibration_path, world, self._tokens_per_step, config.train.steps)
        name = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else ""
        peak = peak_flops(name)
        self._mfu_per_rate = flops_per_token(config.model, config.data.seq_len) / (world * peak) if peak else None
        self._skipped_in_a_row = 0
        self._first = True
        self._batch = Skips(config.train.skip).batch_of_step(trainer.step)
        """The newest batch that was trained on."""
        self._now = 0.0
        """When the step was done, in seconds since training began; it is heard of later, and some sooner than others."""

    def expect(self) -> None:
        """Publish what the run should reach, as far as it is known."""
        t, known = self._t, self._calibrator.found
        configured = t.config.monitor.expected_tokens_per_second
        if configured is not None:
            t.board.set("expected_tokens_per_second", configured)
            t.board.set("expected_step_seconds", self._tokens_per_step / configured)
        elif known is not None:
            t.board.set("expected_tokens_per_second", known.tokens_per_second)
            t.board.set("expected_step_seconds", known.step_seconds)

    def step_done(self, done: Settled) -> None:
        """Write down one step. Raises NotFinite."""
        self._now += sum(done.phases.values())
        self._publish(done)
        self._report_mixture(done)
        if self._first:
            self._first = False
            self._report_start(done)
        elif self._calibrator.step_done(done.seconds) is not None:
            self.expect()
            self._keep_calibration()
        if self._log is not None:
            self._log.step_done(
                done.step,
                tokens=done.tokens,
                step_tokens=self._tokens_per_step,
                loss=done.result.loss,
                grad_norm=done.result.grad_norm,
                lr=done.lr,
                seconds=done.seconds,
                data_wait=done.phases["data_wait"],
                skipped=done.result.skipped,
                now=self._now,
            )
            if done.result.statistics is not None:
                write_stats(self._t.run, done.step, done.result.statistics)
        self._judge(done)

    def _publish(self, done: Settled) -> None:
        t, board, result = self._t, self._t.board, done.result
        board.set("step", done.step)
        board.add("steps_total", 1)
        if t.place.rank == 0:  # tokens of the whole run: one rank counts them
            board.add("tokens_total", self._tokens_per_step)
        board.set("last_step_time", time.time())
        board.observe("step", done.seconds)
        board.set("loss", result.loss)
        board.set("grad_norm", result.grad_norm)
        board.set("learning_rate", done.lr)
        if self._mfu_per_rate is not None:
            board.set("mfu", self._mfu_per_rate * self._tokens_per_step / done.seconds)
        board.progress()
        self.pause.step_done(time.monotonic())
        self.catch_up(done.step)

    def catch_up(self, step: int) -> bool:
        """Try again to write lines that could not be written; whether none waits any more. The board says how many."""
        board, done = self._t.board, self._t.reports.ledger.catch_up(step)
        board.set("lines_waiting", lines_waiting(self._t.run.path))
        board.set("lines_lost", lines_lost(self._t.run.path))
        return done

    def _report_mixture(self, done: Settled) -> None:
        """Say when the mixture changes, which only `data.change_at` can do."""
        t = self._t
        for change in t.config.data.change_at if t.place.rank == 0 else ():
            if self._batch < change.step <= done.batch:
                weights = change.stages[0].weights
                t.reports.ledger.write("mixture_change", done.step, change_at=change.step, weights=weights)
                print(f"step {done.step}: from here on the mixture is that of data.change_at: {weights}", flush=True)
        self._batch = done.batch

    def _report_start(self, done: Settled) -> None:
        """Say what the first step cost: compiling, where nothing of it was kept from an earlier start."""
        t = self._t
        if t.place.rank != 0:
            return
        facts: dict[str, float] = {"seconds": round(done.seconds, 3)}
        line = f"first step took {done.seconds:.1f} s"
        if t.device.type == "cuda":
            peak, total = (
                torch.cuda.max_memory_allocated(t.device),
                torch.cuda.get_device_properties(t.device).total_memory,
            )
            facts["peak_memory_bytes"] = peak
            line += (
                f", compiling included where it was due; GPU memory {peak / 1e9:.1f} of {total / 1e9:.1f} GB at most"
            )
        t.reports.ledger.write("first_step", done.step, **facts)
        print(line, flush=True)

    def _keep_calibration(self) -> None:
        if self._t.place.rank == 0:
            try:
                self._calibrator.keep()
            except OSError as error:
                print(f"could not write {self._t.run.calibration_path}: {error}", flush=True)

    def _new_level(self, done: Settled) -> None:
        """Say that the detector has taken so many spikes in a row for what the loss now is."""
        t = self._t
        self._skipped_in_a_row = 0
        if t.place.rank == 0:
            t.reports.ledger.write("spikes_forgotten", done.step, after=t.config.train.max_nonfinite)
            print(
                f"step {done.step}: {t.config.train.max_nonfinite} spikes in a row; from here on steps are judged by the "
                "new level",
                flush=True,
            )

    def _judge(self, done: Settled) -> None:
        """Count steps that were skipped and end the run where the policy says so."""
        result = done.result
        if result.skipped is None:
            self._skipped_in_a_row = 0
            return
        t, policy = self._t, self._t.config.train
        self._skipped_in_a_row += 1
        not_finite = result.skipped == "not finite"
        if not_finite:
            t.board.add("nonfinite_total", 1)
        many = self._skipped_in_a_row >= policy.max_nonfinite
        ends = not_finite and (many or policy.nonfinite is NonFinitePolicy.stop)
        if not ends:
            t.board.add("skipped_total", 1)
        if t.place.rank == 0:
            t.reports.ledger.write(
                "nonfinite" if ends and not_finite else "skip",
                done.step,
                reason=result.skipped,
                loss=repr(result.loss),
                grad_norm=repr(result.grad_norm),
                in_a_row=self._skipped_in_a_row,
            )
        if many and not not_finite:
            self._new_level(done)
        if ends:
            raise NotFinite(
                f"loss {result.loss}, gradient norm {result.grad_norm} at step {done.step}, "
                f"{self._skipped_in_a_row} skipped in a row (train.nonfinite={policy.nonfinite.value}, "
                f"train.max_nonfinite={policy.max_nonfinite}): lower optim.lr, look at the data of this step, or leave "
                f"these batches out with train.skip=[[{done.batch - self._skipped_in_a_row + 1},{done.batch}]]"
            )
