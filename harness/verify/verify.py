"""Trains the small copy alone and in every layout, and tells how they differ."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.config.schema import Precision, RootConfig
from harness.run.folder import RunFolder
from harness.verify.compare import TOLERANCES, Check, Tolerance, compare
from harness.verify.errors import VerifyError
from harness.verify.layouts import ALONE, Case, impossible
from harness.verify.processes import Failure, Starter, Target
from harness.verify.rank import measure
from harness.verify.shrink import placed, shrink
from harness.verify.tokens import write_tokens


@dataclass(frozen=True)
class Outcome:
    """How a layout compares with one process."""

    case: Case
    precision: Precision
    checks: list[Check] = field(default_factory=list)
    error: str | None = None
    """Why there are no checks."""
    impossible: str | None = None
    """Why the model can't be divided like that, which is no failure."""

    @property
    def passed(self) -> bool:
        return self.error is None and all(check.passed for check in self.checks)


def verify(
    config: RootConfig,
    cases: Sequence[Case],
    precision: Precision,
    starter: Starter,
    work: Path,
    *,
    on_gpu: bool,
    target: Target = measure,
) -> Iterator[Outcome]:
    """One outcome for each of `cases`, as it is known; the empty folder `work` is used for everything that is written.

    `target` is what every rank of the layouts does. Raises VerifyError where the single process fails. On processes that
    are not the starter's main one: no outcomes.
    """
    possible = [case for case in cases if impossible(config, case) is None]
    small = shrink(config, [ALONE, *possible], precision, on_gpu=on_gpu)
    small.data.sources["random"].path = str(work / "tokens")
    alone = work / "alone"
    if starter.main:
        write_tokens(work / "tokens", small)
        _make_run(alone, placed(small, ALONE))
        if failures := starter.run_here(measure, 1, alone / "logs", alone, None):
            raise VerifyError(f"the run in one process failed: {_told(failures)}")
    for number, case in enumerate(cases):
        if case not in possible:
            if starter.main:
                yield Outcome(case, precision, impossible=impossible(config, case))
            continue
        folder = work / f"layout-{number:02d}"
        if starter.main:
            _make_run(folder, placed(small, case))
        failures = starter.run(target, case.ranks, folder / "logs", folder, alone)
        if starter.main:
            yield _outcome(case, precision, failures, folder, alone, TOLERANCES[precision])


def _make_run(folder: Path, config: RootConfig) -> None:
    run = RunFolder(folder)
    run.create()
    run.save_config(config)


def _outcome(
    case: Case, precision: Precision, failures: list[Failure], folder: Path, alone: Path, tolerance: Tolerance
) -> Outcome:
    if failures:
        return Outcome(case, precision, error=_told(failures))
    return Outcome(case, precision, compare(folder, alone, tolerance))


def _told(failures: list[Failure]) -> str:
    """The first failure, which is mostly the cause of the others."""
    first, *others = failures
    more = f" (and {len(others)} other rank{'s' * (len(others) > 1)})" if others else ""
    return f"rank {first.rank}{more}: {first.text}"
