"""The run from its current step to its end.

The loop queues step n + 1 before it reads what came of step n, so that the device never waits for the host.
"""

import contextlib
import gc
import time
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist

from harness.data.errors import DataError
from harness.observe.board import Activity, RankState
from harness.optim.schedule import learning_rate
from harness.run.journal import journal
from harness.train.exits import DataLost, Fenced, RunEnds, SaveFailed
from harness.train.log import drop_after
from harness.train.meters import GcMeter, idle_phases
from harness.train.on_demand import OnDemand
from harness.train.records import Records, Settled
from harness.train.setup import Trainer
from harness.train.step import PendingStep, StepResult
from harness.train.validate import Validator

LAST_SAVE_SECONDS = 600.0
"""How long a run that has reached its end tries to write its last checkpoint, with the disk full."""
SAVE_AGAIN_SECONDS = 30.0
"""Longest wait between two of these tries."""
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
        self._compiled = self._validated = False
        """Whether this process has done a step and a validation: the first of each compiles."""
        self._unsaved = ""
        """Why the last checkpoint could not be written, if the run stops without it."""
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
                self._end_recording_of_step()
                self._validate_if_due()
                self._save_if_due()
        except DataError as error:
            t.reports.ledger.write("data_lost", t.step, why=str(error))
            raise DataLost(str(error)) from error
        except RunEnds:
            t.saver.wait()  # all ranks end together: let a save under way come to its end
            raise
        finally:
            gc_meter.close()
            t.board.begin(Activity.recording)
            self._on_demand.close()
        self._end()

    def _begin(self) -> None:
        t = self._t
        if t.place.rank == 0:
            for path in (t.run.metrics_path, t.run.stats_path, t.run.validation_path):
                # on a full disk later: before the next line is written, and until then lines wait
                journal(path).first(partial(drop_after, path, t.step, t.run.attempt_dir(t.attempt)))
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
        t.board.begin(Activity.waiting_for_data)
        batch = next(batches)  # type: ignore[call-overload]
        t.clock.switch("other")
        t.board.begin(Activity.stepping if self._compiled else Activity.compiling)
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
        self._compiled = True
        if result.fenced:
            raise Fenced(f"a newer attempt of {t.run.name} has started; attempt {t.attempt} stops here")
        idle = idle_phases(t.stepper.seconds(self._last_end, pending.begin), queued.host)
        self._last_end = pending.end
        phases = {**result.seconds, **idle}
        t.clock.charge(phases)
        self._stop = self._stop or result.stop
        self._records.step_done(Settled(queued.step, queued.batch, queued.tokens, queued.lr, result, phases))

    def _end_recording_of_step(self) -> None:
        t = self._t
        if not self._on_demand.recording:
            self._on_demand.step_end(t.step)
            return
        with self._records.pause.during(Activity.recording):
            self._on_demand.step_end(t.step)

    def _validate_if_due(self) -> None:
        t = self._t
        if self._validator is None or not self._validator.due(t.step):
            return
        self._settle()
        with self._records.pause.during(Activity.validating if self._validated else Activity.compiling):
            self._stop = self._validator.run(t.step, t.tokens) or self._stop
        self._validated = True

    def _save_if_due(self) -> None:
        """Save at the cadence and at the end. Only the save before an exit must succeed."""
        t = self._t
        if not (self._stop or t.step == self._steps or t.step % t.config.checkpoint.every_steps == 0):
            return
        self._settle()  # which may bring the wish to stop
        t.clock.switch("checkpoint")
        if self._stop or t.step == self._steps:
            self._save_last()
        elif t.config.checkpoint.async_save:  # a pause of a moment; waiting for an earlier save is not planned
            t.board.begin(Activity.saving)
            t.saver.save(t.state, t.step, t.tokens)
        else:
            with self._records.pause.during(Activity.saving):
                t.saver.save(t.state, t.step, t.tokens)
        t.clock.switch("other")

    def _save_last(self) -> None:
        """The save before an exit. Without it the steps since the last checkpoint are lost, so this waits for room.

        Raises SaveFailed if it can't be written and the run is at its end. A run that was asked to stop stops all the
        same: started again, it does those steps again."""
        t = self._t
        at_end = t.step == self._steps or (self._validator is not None and self._validator.early_stop.stops)
        patience = LAST_SAVE_SECONDS
        if not at_end:  # Slurm ends the job soon, and would not start it again
            patience = min(patience, t.config.cluster.signal_delay_seconds / 2)
        self._records.pause.begin(Activity.saving)
        deadline, pause = time.monotonic() + patience, 1.0
        while (error := self._failed_save()) is not None:
            if not self._agree(time.monotonic() + pause < deadline):
                break
            t.board.begin(Activity.saving)
            self._records.catch_up(t.step)
            time.sleep(pause)
            pause = min(2 * pause, SAVE_AGAIN_SECONDS)
        if error is None:
            return
        if at_end:
            raise SaveFailed(
                f"the checkpoint of step {t.step}, the last of this process, could not be written within {patience:.0f} s: "
                f"{error}. Make room in {t.run.checkpoints_dir}, then launch the run again."
            )
        self._unsaved = error

    def _failed_save(self) -> str | None:
        """Save, and wait for it: why it failed. Raises Fenced."""
        t = self._t
        t.saver.save(t.state, t.step, t.tokens)
        result = t.saver.wait()
        assert result is not None and result.step == t.step
        if result.fenced:
            raise Fenced(result.error)
        return result.error

    def _agree(self, own: bool) -> bool:
        """Rank 0's view, on all ranks: clocks differ."""
        views = [own]
        dist.broadcast_object_list(views, src=0, group=self._t.saver.group)
        return views[0]

    def _know_of_newer_attempt(self) -> bool:
        """What this rank knows; the ranks agree on it in the step's reduction."""
        t, now = self._t, time.monotonic()
        saved = t.saver.result()
        if saved is not None and saved.fenced:
            self._fenced = True
        if t.place.rank == 0 and now - self._fence_checked > FENCE_SECONDS:
            self._fence_checked = now
            with contextlib.suppress(OSError):  # a mount that is away: the next look may know
                newest = t.run.newest_attempt()
                self._fenced = self._fenced or (newest is not None and newest > t.attempt)
        return self._fenced

    def _end(self) -> None:
        t = self._t
        t.board.begin(Activity.ending)
        t.clock.charge(idle_phases(t.stepper.seconds(self._last_end, t.stepper.mark()), t.clock.take()))
        state, event, why = RankState.finished, "finished", {}
        line = f"finished: all {self._steps} steps are done and saved"
        if t.step < self._steps and self._validator is not None and self._validator.early_stop.stops:
            event, why = "early_stop", {"why": self._validator.early_stop.why}
            line = f"finished early after step {t.step}, which is saved: {why['why']}"
        elif t.step < self._steps:
            state, event = RankState.stopped, "stopped"
            line = f"stopped on request after step {t.step}, which is saved"
            if self._unsaved:
                why = {"why": f"without a checkpoint of step {t.step}: {self._unsaved}"}
                line = f"stopped on request after step {t.step}, {why['why']}"
        if t.place.rank == 0:
            t.reports.ledger.write(event, t.step, **why)
            print(line, flush=True)
        self._records.catch_up(t.step)
        t.board.set("state", state)
