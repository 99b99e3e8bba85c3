"""Learning rate as a pure function of the step."""

import math

from harness.config.schema import Decay, OptimConfig, ScheduleConfig


def learning_rate(schedule: ScheduleConfig, optim: OptimConfig, steps: int, step: int) -> float:
    """Learning rate of optimizer step `step` (1 to `steps`).

    Rises linearly to the peak at step `warmup_steps`, stays there, and decays over the last `decay_steps` to
    `final_lr_ratio` of the peak, reached exactly at the last step.
    """
    warmup = schedule.warmup_steps
    decay = steps - warmup if schedule.decay_steps is None else schedule.decay_steps
    peak, final = optim.lr, optim.lr * schedule.final_lr_ratio
    if step <= warmup:
        return peak * step / warmup
    if step <= steps - decay or schedule.decay is Decay.constant:
        return peak
    left = max(0, steps - step) / decay  # 1 where the decay begins, 0 at the last step
    if schedule.decay is Decay.cosine:
        left = 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))
    return final + (peak - final) * left
