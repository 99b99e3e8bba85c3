"""Learning rate as a pure function of the step, and what a resumed run would make of it."""

import math
from dataclasses import dataclass

from harness.config.schema import Decay, OptimConfig, RootConfig, ScheduleConfig

LARGEST_RISE = 0.2
"""Of the peak. A rise by more between two steps, where the schedule had none, undoes a decay."""


@dataclass(frozen=True)
class Curve:
    """The learning rate of a run of `steps` steps."""

    schedule: ScheduleConfig
    optim: OptimConfig
    steps: int

    @classmethod
    def of(cls, config: RootConfig) -> "Curve":
        return cls(config.schedule, config.optim, config.train.steps)

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 1."""
        return learning_rate(self.schedule, self.optim, self.steps, step)

    def share(self, step: int) -> float:
        """The same as a share of the peak that holds at the step."""
        return _share_of_peak(self.schedule, self.steps, step)

    def peak(self, step: int) -> float:
        return peak(self.schedule, self.optim, step)

    @property
    def plateau_end(self) -> int | None:
        """Last step at the peak before a decay; None if the schedule has no plateau or never decays."""
        schedule = self.schedule
        if schedule.decay is Decay.constant or not schedule.decay_steps:
            return None
        end = self.steps - schedule.decay_steps
        return end if end > schedule.warmup_steps else None

    def undoes_decay(self, step: int, share: float) -> bool:
        """Whether a run that has trained `step` at `share` of the peak would jump back up if it followed this curve from
        there on. An override of the peak that begins right after `step` says that this is meant."""
        if math.isclose(self.share(step), share, abs_tol=1e-9):
            return False  # it has followed this curve
        if self.peak(step + 1) == 0:
            return False  # whatever its share, the rate stays 0
        if any(override.step == step + 1 for override in self.schedule.overrides):
            return False
        return self.share(step + 1) - share > LARGEST_RISE

    def describe(self) -> str:
        """The keys with their values, for messages."""
        decay = "null" if self.schedule.decay_steps is None else self.schedule.decay_steps
        return f"train.steps={self.steps} with schedule.decay_steps={decay}"


def learning_rate(schedule: ScheduleConfig, optim: OptimConfig, steps: int, step: int) -> float:
    """Learning rate of optimizer step `step` (1 to `steps`).

    Rises linearly to the peak at step `warmup_steps`, stays there, and decays over the last `decay_steps` to
    `final_lr_ratio` of the peak, reached exactly at the last step. `overrides` change the peak, never the shape.
    """
    return peak(schedule, optim, step) * _share_of_peak(schedule, steps, step)


def peak(schedule: ScheduleConfig, optim: OptimConfig, step: int) -> float:
    """The peak that holds at `step`: of the overrides begun by then the one that begins last, or else `optim.lr`."""
    begun = [override for override in schedule.overrides if override.step <= step]
    return sorted(begun, key=lambda override: override.step)[-1].lr if begun else optim.lr


def _share_of_peak(schedule: ScheduleConfig, steps: int, step: int) -> float:
    warmup = schedule.warmup_steps
    decay = steps - warmup if schedule.decay_steps is None else schedule.decay_steps
    if step <= warmup:
        return step / warmup
    if step <= steps - decay or schedule.decay is Decay.constant:
        return 1.0
    left = max(0, steps - step) / decay  # 1 where the decay begins, 0 at the last step
    if schedule.decay is Decay.cosine:
        left = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return schedule.final_lr_ratio + (1.0 - schedule.final_lr_ratio) * left
