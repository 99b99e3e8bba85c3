"""Learning rate as a pure function of the step."""

import math

from harness.config.schema import Decay, OptimConfig, ScheduleConfig


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
