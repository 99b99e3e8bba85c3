"""The steps in their order, and running them: each one runs, whatever the others have found."""

import importlib
import time
import traceback
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.preflight.finding import Finding, Subject, skipped


@dataclass(frozen=True)
class Step:
    """One thing to look at. Its code, `check_NAME` in `harness.preflight.check_NAME`, is imported when it runs."""

    name: str
    about: str


@dataclass(frozen=True)
class Result:
    """A step that is over."""

    step: Step
    finding: Finding
    seconds: float


CONFIG = Step("config", "composes, is possible, and what it comes to")
STEPS = (
    CONFIG,
    Step("data", "every source opens and fits; the way to the last step, timed, with the memory that it takes"),
    Step(
        "weights",
        "model.init_from computes the same logits as in plain transformers, on a few tokens, and all weights are used",
    ),
    Step("storage", "runs_dir can be written, has room for the checkpoints, and how fast it is"),
    Step("staging", "data.stage_to can be written, what fits there, and how long copying takes"),
    Step("gpus", "as many as wanted, all alike, not throttled, no memory errors, free"),
    Step("slurm", "answers, has the partition and the nodes, accepts the batch script (sbatch --test-only)"),
    Step("layout", "the parallel layout, in small, computes what one process computes (harness.verify)"),
    Step("resume", "a small run is killed, launched again, and has the same losses to the last bit"),
)

Check = Callable[[Subject], Finding]


def run_steps(overrides: list[str], config_dir: Path | None, names: Collection[str]) -> Iterator[Step | Result]:
    """Each step of these names: itself as it begins, then its result.

    The config is composed in any case, for the others need it: where that fails its result comes too, and they are
    skipped.
    """
    shown = CONFIG.name in names
    if shown:
        yield CONFIG
    started = time.perf_counter()
    from harness.preflight.check_config import check_config

    finding, subject = check_config(overrides, config_dir)
    if shown or subject is None:
        yield Result(CONFIG, finding, time.perf_counter() - started)
    for step in STEPS[1:]:
        if step.name not in names:
            continue
        if subject is None:
            yield Result(step, skipped("needs a config that works"), 0.0)
            continue
        yield step
        started = time.perf_counter()
        finding = _guarded(_check_of(step), subject)
        yield Result(step, finding, time.perf_counter() - started)


def _check_of(step: Step) -> Check:
    name = f"check_{step.name}"
    check: Check = getattr(importlib.import_module(f"harness.preflight.{name}"), name)
    return check


def _guarded(check: Check, subject: Subject) -> Finding:
    """What `check` finds; where it crashes, that."""
    try:
        return check(subject)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        return Finding(
            f"crashed: {what}",
            failures=(f"this step itself failed ({what}); see below",),
            detail=traceback.format_exc(),
        )
