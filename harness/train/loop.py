"""The run from its current step to its end."""

import gc
import time

import torch

from harness.config.schema import NonFinitePolicy
from harness.model.family import flops_per_token
from harness.observe.board import RankState
from harness.optim.schedule import learning_rate
from harness.train.exits import Fenced, NotFinite, RunEnds, SaveFailed
from harness.train.log import StepLog, drop_after
from harness.train.meters import GcMeter, PlannedPause
from harness.train.setup import Trainer
from harness.train.speed import Calibrator, peak_flops
from harness.train.step import StepResult

FENCE_SECONDS = 2.0
"""Between looks for a newer attempt of the run."""


class Loop:
    """Steps, and what belongs to them: records, checkpoints, and the decisions to stop."""

    def __init__(self, trainer: Trainer) -> None:
        self._t = trainer
        config, world = trainer.config, trainer.place.world_size
        self._steps = config.train.steps
        self._tokens_per_step = trainer.stepper.tokens_per_step
        self._log = StepLog(trainer.run, self._steps, config.train.log_every) if trainer.place.rank == 0 else None
        self._pause = PlannedPause(trainer.board)
        self._calibrator = Calibrator(trainer.run.calibration_path, world, self._tokens_per_step, self._steps)
        name = torch.cuda.get_device_name(trainer.device) if trainer.device.type == "cuda" else ""
        peak = peak_flops(name)
        self._mfu_per_rate = flops_per_token(config.model, config.data.seq_len) / (world * peak) if peak else None
        self._nonfinite_in_a_row = 0
        self._fence_checked = 0.0
        self._fenced = False

    def run(self) -> None:
        """Train until all steps are done or somebody asks to stop. Raises RunEnds for any other end."""
        t = self._t
        self._begin()
        gc_meter = GcMeter(t.board)
        try:
            batches = iter(t.loader)
            while t.step < self._steps:
                started = time.perf_counter()
                waited = t.clock.seconds["data_wait"]
                t.clock.switch("data_wait")
                batch = next(batches)
                t.clock.switch("other")
                assert batch.step == t.step + 1
                lr = learning_rate(t.config.schedule, t.config.optim, self._steps, batch.step)
                stop = t.board.get("stop_request") != 0
                result = t.stepper.run(batch, lr, stop=stop, fenced=self._know_of_newer_attempt())
                if result.fenced:
                    raise Fenced(f"a newer attempt of {t.run.name} has started; attempt {t.attempt} stops here")
                t.step, t.tokens = batch.step, t.tokens + self._tokens_per_step
                waited = t.clock.seconds["data_wait"] - waited
                self._record(result, lr, time.perf_counter() - started, waited)
                stops = result.stop and t.step < self._steps
                self._save_if_due(stops)
                if stops:
                    self._end(RankState.stopped, "stopped", f"stopped on request after step {t.step}, which is saved")
                    return
        except RunEnds:
            t.saver.wait()  # all ranks end together: let a save under way come to its end
            raise
        finally:
            gc_meter.close()
        self._end(RankState.finished, "finished", f"finished: all {self._steps} steps are done and saved")

    def _begin(self) -> None:
        t = self._t
        if t.place.rank == 0:
            drop_after(t.run, t.step, t.attempt)
            t.reports.ledger.write(
                "train_start",
                t.step,
                world_size=t.place.world_size,
                resumed_from=t.resumed_from,
                restart=t.place.restart,
                dp_replicate=t.grid.dp_replicate,
                dp_shard=t.grid.dp_shard,
                tp=t.grid.tp,
            )
        t.board.set("step", t.step)
        self._expect()
        t.board.set("state", RankState.training)
        gc.collect()
        gc.freeze()  # what exists now lives as long as the run: no collection need look at it again

    def _expect(self) -> None:
        """Publish what the run should reach, as far as it is known."""
        t, known = self._t, self._calibrator.found
        configured = t.config.monitor.expected_tokens_per_second
        if configured is not None:
            t.board.set("expected_tokens_per_second", configured)
            t.board.set("expected_step_seconds", self._tokens_per_step / configured)
        elif known is not None:
            t.board.set("expected_tokens_per_second", known.tokens_per_second)
            t.board.set("expected_step_seconds", known.step_seconds)

    def _record(self, result: StepResult, lr: float, seconds: float, data_wait: float) -> None:
        t, board = self._t, self._t.board
        board.set("step", t.step)
        board.add("steps_total", 1)
        if t.place.rank == 0:  # tokens of the whole run: one rank counts them
            board.add("tokens_total", self._tokens_per_step)
        board.set("last_step_time", time.time())
        board.observe("step", seconds)
        board.set("loss", result.loss)
        board.set("grad_norm", result.grad_norm)
        board.set("learning_rate", lr)
        if self._mfu_per_rate is not None:
            board.set("mfu", self._mfu_per_rate * self._tokens_per_step / seconds)
        self._pause.step_done(time.monotonic())
        if self._calibrator.step_done(seconds) is not None:
            self._expect()
            self._keep_calibration()
        if self._log is not None:
            self._log.step_done(
                t.step,
                tokens=t.tokens,
                step_tokens=self._tokens_per_step,
                loss=result.loss,
                grad_norm=result.grad_norm,
                lr=lr,
                seconds=seconds,
                data_wait=data_wait,
                skipped=not result.finite,
            )
        self._judge(result)

    def _keep_calibration(self) -> None:
        if self._t.place.rank == 0:
            try:
                self._calibrator.keep()
            except OSError as error:
                print(f"could not write {self._t.run.calibration_path}: {error}", flush=True)

    def _judge(self, result: StepResult) -> None:
        """Count steps that were not finite and end the run where the policy says so."""
        if result.finite:
            self._nonfinite_in_a_row = 0
            return
        t, policy = self._t, self._t.config.train
        t.board.add("nonfinite_total", 1)
        self._nonfinite_in_a_row += 1
        ends = policy.nonfinite is NonFinitePolicy.stop or self._nonfinite_in_a_row >= policy.max_nonfinite
        if not ends:
            t.board.add("skipped_total", 1)
        if t.place.rank == 0:
            t.reports.ledger.write(
                "nonfinite" if ends else "skip",
                t.step,
                loss=repr(result.loss),
                grad_norm=repr(result.grad_norm),
                in_a_row=self._nonfinite_in_a_row,
            )
        if ends:
            raise NotFinite(
                f"loss {result.loss}, gradient norm {result.grad_norm} at step {t.step}, {self._nonfinite_in_a_row} in a "
                f"row (train.nonfinite={policy.nonfinite.value}, train.max_nonfinite={policy.max_nonfinite}): lower "
                "optim.lr, look at the data of this step, or go back to an earlier checkpoint"
            )

    def _save_if_due(self, stops: bool) -> None:
        """Save at the cadence and at the end. Only the save before an exit must succeed."""
        t = self._t
        last = stops or t.step == self._steps
        if not last and t.step % t.config.checkpoint.every_steps:
            return
        t.clock.switch("checkpoint")
        if last:
            t.board.set("planned_pause", 1.0)
        t.saver.save(t.state, t.step, t.tokens)
        if last:
            result = t.saver.wait()
            assert result is not None and result.step == t.step
            if result.fenced:
                raise Fenced(result.error)
            if result.error is not None:
                raise SaveFailed(
                    f"the checkpoint of step {t.step}, the last of this process, could not be written: {result.error}. "
                    f"Make room in {t.run.checkpoints_dir}, then launch the run again."
                )
        t.clock.switch("other")

    def _know_of_newer_attempt(self) -> bool:
        """What this rank knows; the ranks agree on it in the step's reduction."""
        t, now = self._t, time.monotonic()
        saved = t.saver.result()
        if saved is not None and saved.fenced:
            self._fenced = True
        if t.place.rank == 0 and now - self._fence_checked > FENCE_SECONDS:
            self._fence_checked = now
            newest = t.run.newest_attempt()
            self._fenced = self._fenced or (newest is not None and newest > t.attempt)
        return self._fenced

    def _end(self, state: RankState, event: str, line: str) -> None:
        t = self._t
        t.clock.switch("other")
        if t.place.rank == 0:
            t.reports.ledger.write(event, t.step)
            print(line, flush=True)
        t.board.set("state", state)
