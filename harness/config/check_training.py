"""Checks of the optimizer, the schedule, and what else happens between steps: skipping, spikes, validation."""

from collections.abc import Iterator

from harness.config.schema import RootConfig
from harness.data.skips import skip_problems

OPTIMIZERS = ("adamw", "muon", "lamb")
SCHEDULES = ("wsd", "cosine", "linear")
LEAST_SIGMAS = 3.0
"""Nearer to the mean than this lie ordinary steps: 1 in 44 exceeds two standard deviations, 1 in 740 three."""


def check_training(config: RootConfig) -> Iterator[str]:
    """Problems of `optim`, `schedule` and the parts of `train` that are not about layout."""
    yield from _check_optimizer(config)
    yield from _check_schedule(config)
    yield from _check_spikes(config)
    yield from skip_problems(config.train.skip)
    yield from _check_validation(config)


def _check_optimizer(config: RootConfig) -> Iterator[str]:
    optim = config.optim
    if optim.name not in OPTIMIZERS:
        yield f"optim.name={optim.name}: choose one of {', '.join(OPTIMIZERS)}"
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        yield f"optim.betas={list(optim.betas)}: two numbers, each at least 0 and below 1"
    if not 0 <= optim.momentum < 1:
        yield f"optim.momentum={optim.momentum}: at least 0 and below 1"
    if optim.ema_decay is not None and not 0 < optim.ema_decay < 1:
        yield f"optim.ema_decay={optim.ema_decay}: between 0 and 1, or null for no moving average"


def _check_schedule(config: RootConfig) -> Iterator[str]:
    schedule, steps = config.schedule, config.train.steps
    if schedule.name not in SCHEDULES:
        yield f"schedule.name={schedule.name}: choose one of {', '.join(SCHEDULES)}"
    if not 0 <= schedule.final_lr_ratio <= 1:
        yield f"schedule.final_lr_ratio={schedule.final_lr_ratio}: a share of the peak, between 0 and 1"
    decay = schedule.decay_steps
    if decay is not None and decay < 0:
        yield f"schedule.decay_steps={decay}: must not be negative"
    if schedule.warmup_steps + (decay or 0) > steps:
        yield (
            f"schedule.warmup_steps={schedule.warmup_steps} + schedule.decay_steps={decay or 0} exceed train.steps={steps}"
        )
    previous = 0
    for index, override in enumerate(schedule.overrides):
        name = f"schedule.overrides[{index}]"
        if not 1 <= override.step <= steps:
            yield f"{name}.step={override.step}: a step of the run, from 1 to train.steps={steps}"
        elif override.step <= previous:
            yield f"{name}.step={override.step}: must come after step {previous}, that of the override before it"
        if not 0 <= override.lr < float("inf"):
            yield f"{name}.lr={override.lr}: must be finite and not negative"
        previous = max(previous, override.step)


def _check_spikes(config: RootConfig) -> Iterator[str]:
    train = config.train
    if train.spike_sigmas != 0 and not train.spike_sigmas >= LEAST_SIGMAS:
        yield (
            f"train.spike_sigmas={train.spike_sigmas}: below {LEAST_SIGMAS:g} ordinary steps would be skipped; set "
            f"{LEAST_SIGMAS:g} or more (6 is usual), or 0 for never"
        )
    if train.spike_window < 8:
        yield f"train.spike_window={train.spike_window}: at least 8 steps, or no deviation is known; 128 is usual"


def _check_validation(config: RootConfig) -> Iterator[str]:
    train = config.train
    if train.eval_every and not config.data.validation:
        yield (
            f"train.eval_every={train.eval_every}: data.validation is empty; give held-out token files, for example "
            "+data.validation.NAME.path=FOLDER, or set train.eval_every=0"
        )
    if train.early_stop_evals and not train.eval_every:
        yield (
            f"train.early_stop_evals={train.early_stop_evals}: train.eval_every=0 never validates; set train.eval_every, "
            "or train.early_stop_evals=0"
        )
