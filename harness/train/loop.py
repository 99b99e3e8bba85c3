"""The run from its current step to its end.

The loop queues step n + 1 before it reads what came of step n, so that the device never waits for the host.
"""

import gc
import time
from dataclasses import dataclass

from harness.data.errors import DataError
from harness.observe.board import RankState
from harness.optim.schedule import learning_rate
from harness.train.exits import DataLost, Fenced, RunEnds, SaveFailed
from harness.train.log import drop_after
from harness.train.meters import GcMeter, idle_phases
from harness.train.on_demand import OnDemand
from harness.train.records import Records, Settled
from harness.train.setup import Trainer
from harness.train.step import PendingStep, StepResult
from harness.train.validate import Validator

FENCE_SECONDS = 2.0
"""Between looks for a newer attempt of the run."""


@dataclass(frozen=True)
class _Queued:
    """A step whose outcome has not been read yet."""

    pending: PendingStep
    step: int
    batch: int
    tokens: int
    lr: float
    host: dict[str, float]
    """What the host did between the step before and this one, in seconds by phase."""


class Loop:
    """Steps, and what belongs to them: checkpoints, validations, and the decisions to stop."""

    def __init__(self, trainer: Trainer) -> None:
        self._t = trainer
        self._steps = trainer.config.train.steps
        self._records = Records(trainer)
        self._validator = Validator(trainer, trainer.validation) if trainer.validation is not None else None
        self._on_demand = OnDemand(trainer.run, trainer.place.rank, trainer.device)
        self._queued: _Queued | None = None
        self._last_end = trainer.stepper.mark()
        # true where this process takes up a run that has stopped early already
        self._stop = self._validator is not None and self._validator.early_stop.stops
        self._fenced = False
        self._fence_checked = 0.0

    def run(self) -> None:
        """Train until all steps are done or somebody asks to stop. Raises RunEnds for any other end."""
        t = self._t
        self._begin()
        gc_meter = GcMeter(t.board)
        try:
            batches = iter(t.loader)
            while t.step < self._steps and not self._stop:
                self._on_demand.step_begin(t.step + 1)
                self._queue_step(batches)
                self._on_demand.step_end(t.step)
                if self._validator is not None and self._validator.due(t.step):
                    self._settle()
                    self._stop = self._validator.run(t.step, t.tokens) or self._stop
                self._save_if_due()
        except DataError as error:
            t.reports.ledger.write("data_lost", t.step, why=str(error))
            raise DataLost(str(error)) from error
        except RunEnds:
            t.saver.wait()  # all ranks end together: let a save under way come to its end
            raise
        finally:
            gc_meter.close()
            self._on_demand.close()
        self._end()

    def _begin(self) -> None:
        t = self._t
        if t.place.rank == 0:
            for path in (t.run.metrics_path, t.run.stats_path, t.run.validation_path):
                drop_after(path, t.step, t.run.attempt_dir(t.attempt))
            t.reports.ledger.write(
                "train_start",
                t.step,
                world_size=t.place.world_size,
                resumed_from=t.resumed_from,
                restart=t.place.restart,
                **vars(t.grid),
            )
        t.board.set("step", t.step)
        self._records.expect()
        t.board.set("state", RankState.training)
        gc.collect()
        gc.freeze()  # what exists now lives as long as the run: no collection need look at it again
        t.clock.charge({"other": sum(t.clock.take().values())})
        self._last_end = t.stepper.mark()

    def _queue_step(self, batches: object) -> None:
        """Queue the next step, then read what came of the one before."""
        t, config = self._t, self._t.config
        t.clock.switch("data_wait")
        batch = next(batches)  # type: ignore[call-overload]
        t.clock.switch("other")
        assert batch.step == t.step + 1
        lr = learning_rate(config.schedule, config.optim, self._steps, batch.step)
        host = t.clock.take()
        every = config.train.stats_every
        pending = t.stepper.run(
            batch,
            lr,
            stop=t.board.get("stop_request") != 0,
            fenced=self._know_of_newer_attempt(),
            with_statistics=bool(every) and batch.step % every == 0,
        )
        t.step, t.tokens = batch.step, t.tokens + t.stepper.tokens_per_step
        before, self._queued = self._queued, _Queued(pending, t.step, batch.batch, t.tokens, lr, host)
        if before is not None:
            self._read(before)

    def _settle(self) -> None:
        """Read the step that is still queued, so that the device has nothing left to do."""
        before, self._queued = self._queued, None
        if before is not None:
            self._read(before)

    def _read(self, queued: _Queued) -> None:
        t, pending = self._t, queued.pending
        result: StepResult = pending.result()
        if result.fenced:
            raise Fenced(f"a newer attempt of {t.run.name} has started; attempt {t.attempt} stops here")
        idle = idle_phases(t.stepper.seconds(self._last_end, pending.begin), queued.host)
        self._last_end = pending.end
        phases = {**result.seconds, **idle}
        t.clock.charge(phases)
        self._stop = self._stop or result.stop
        self._records.step_done(Settled(queued.step, queued.batch, queued.tokens, queued.lr, result, phases))

    def _save_if_due(self) -> None:
        """Save at the cadence and at the end. Only the save before an exit must succeed."""
        t = self._t
        if not (self._stop or t.step == self._steps or t.step % t.config.checkpoint.every_steps == 0):
            return
        self._settle()  # which may bring the wish to stop
        last = self._stop or t.step == self._steps
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

    def _end(self) -> None:
        t = self._t
        t.clock.charge(idle_phases(t.stepper.seconds(self._last_end, t.stepper.mark()), t.clock.take()))
        state, event, why = RankState.finished, "finished", {}
        line = f"finished: all {self._steps} steps are done and saved"
        if t.step < self._steps and self._validator is not None and self._validator.early_stop.stops:
            event, why = "early_stop", {"why": self._validator.early_stop.why}
            line = f"finished early after step {t.step}, which is saved: {why['why']}"
        elif t.step < self._steps:
            state, event = RankState.stopped, "stopped"
            line = f"stopped on request after step {t.step}, which is saved"
        if t.place.rank == 0:
            t.reports.ledger.write(event, t.step, **why)
            print(line, flush=True)
        t.board.set("state", state)
