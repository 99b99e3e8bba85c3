"""Trains the small copy alone and in every layout, and tells how they differ."""

from collections.abc import Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.config.schema import Precision, RootConfig
from harness.run.folder import RunFolder
from harness.verify.compare import FAILED, TOLERANCES, Check, Tolerance, compare
from harness.verify.errors import VerifyError
from harness.verify.layouts import ALONE, Case, impossible
from harness.verify.processes import Failure, Starter, Target
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


def measure(folder: Path, reference: Path | None) -> None:
    """What a rank does, see `harness.verify.rank`, which only ranks import."""
    from harness.verify import rank

    rank.measure(folder, reference)


@dataclass(frozen=True)
class Reference:
    """The small copy, which trains in one process."""

    small: RootConfig
    precision: Precision
    work: Path
    """Everything is written below it."""
    failures: "Future[list[Failure]] | None"
    """Of the one process; None on processes that are not the starter's main one."""

    @property
    def folder(self) -> Path:
        return self.work / "alone"

    def wait(self) -> None:
        """Until it has trained. Raises VerifyError where it failed."""
        if self.failures is not None and (failures := self.failures.result()):
            raise VerifyError(f"the run in one process failed: {_told(failures)}")


def train_alone(
    config: RootConfig,
    cases: Sequence[Case],
    precision: Precision,
    starter: Starter,
    executor: Executor,
    work: Path,
    *,
    on_gpu: bool,
    compiled: bool = True,
) -> Reference:
    """Have `executor` train, in the empty folder `work`, what all of `cases` are compared with."""
    possible = [case for case in cases if impossible(config, case) is None]
    small = shrink(config, [ALONE, *possible], precision, on_gpu=on_gpu, compiled=compiled)
    small.data.sources["random"].path = str(work / "tokens")
    reference = Reference(small, precision, work, None)
    if not starter.main:
        return reference
    write_tokens(work / "tokens", small)
    folder = reference.folder
    _make_run(folder, placed(small, ALONE))

    def train() -> list[Failure]:
        failures = starter.run_here(measure, 1, folder / "logs", folder, None)
        if failures:
            (folder / FAILED).touch()  # layouts wait for its checkpoint
        return failures

    return replace(reference, failures=executor.submit(train))


def verify(
    config: RootConfig,
    cases: Sequence[Case],
    reference: Reference,
    starter: Starter,
    executor: Executor,
    target: Target = measure,
) -> "list[Future[Outcome]]":
    """Have `executor` hold each of `cases` against the reference, which it was given before; their outcomes, in their order.

    `target` is what every rank of the layouts does. An outcome raises VerifyError where the single process fails. On
    processes that are not the starter's main one outcomes say nothing.
    """
    return [
        executor.submit(_hold, config, case, reference, starter, reference.work / f"layout-{number:02d}", target)
        for number, case in enumerate(cases)
    ]


def _hold(
    config: RootConfig, case: Case, reference: Reference, starter: Starter, folder: Path, target: Target
) -> Outcome:
    precision = reference.precision
    if (why := impossible(config, case)) is not None:
        return Outcome(case, precision, impossible=why)
    if starter.main:
        _make_run(folder, placed(reference.small, case))
    failures = starter.run(target, case.ranks, folder / "logs", folder, reference.folder)
    if not starter.main:
        return Outcome(case, precision)
    reference.wait()
    return _outcome(case, precision, failures, folder, reference.folder, TOLERANCES[precision])


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
