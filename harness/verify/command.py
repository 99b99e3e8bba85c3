"""Decides what is verified where, and prints it."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.config.schema import Precision, RootConfig
from harness.observe.nvml_library import visible_gpus
from harness.run.files import write_json
from harness.verify.errors import VerifyError
from harness.verify.layouts import MOST_PROCESSES, STANDARD, Case, layout_for, own_layout, small_layout
from harness.verify.processes import BesideTorchrun, OnThisMachine, Starter

if TYPE_CHECKING:
    from harness.verify.verify import Outcome

EQUAL, DIFFERENT = 0, 1
"""Exit codes: every layout computes what one process computes; one does not."""

MOST_AT_ONCE = 8
CORES_EACH = 8


@dataclass(frozen=True)
class Options:
    """What is asked for beside the config."""

    all: bool = False
    full_layout: bool = False
    cpu: bool = False
    json: Path | None = None


def run(config: RootConfig, options: Options) -> int:
    """Verify and print; the exit code, on all processes but the main one 0. Raises VerifyError."""
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise VerifyError(f"--json {options.json}: no such folder")
    started = _started_ranks()
    cases = _cases(config, options, started)
    here = int(os.environ.get("LOCAL_WORLD_SIZE", started)) if started else max(case.ranks for case in cases)
    on_gpu = not options.cpu and visible_gpus() >= here
    starter = (BesideTorchrun if started else OnThisMachine)(config.model.model_type, on_gpu=on_gpu)
    # torch and all that needs it are imported here while the starter's server does the same
    from harness.verify.table import as_json
    from harness.verify.verify import train_alone, verify

    outcomes: list[Outcome] = []
    with _work_folder(config, starter) as work, _side_by_side(1 if started else _at_once()) as executor:
        references = [
            train_alone(
                config, cases, precision, starter, executor, work / precision, on_gpu=on_gpu, compiled=options.all
            )
            for precision in _precisions(config, on_gpu)
        ]
        waiting = [verify(config, cases, reference, starter, executor) for reference in references]
        for reference, futures in zip(references, waiting, strict=True):
            if not starter.main:
                wait(futures)
                continue
            where = "GPU, nccl" if on_gpu else "CPU, gloo"
            print(f"\n{config.run.name} in small against one process, {reference.precision} ({where})", flush=True)
            found = (future.result() for future in futures)
            outcomes += _print_rows(found, cases) if options.all else _print_checks(found, config)
    if not starter.main:
        return EQUAL
    if options.json is not None:
        write_json(options.json, as_json(outcomes, run=config.run.name, device="cuda" if on_gpu else "cpu"))
    print(f"\n{_verdict(outcomes)}", flush=True)
    return EQUAL if all(outcome.passed for outcome in outcomes) else DIFFERENT


def _at_once() -> int:
    """Layouts that are trained side by side: small as they are, they wait for the host, and share its GPUs."""
    return max(1, min(MOST_AT_ONCE, len(os.sched_getaffinity(0)) // CORES_EACH))


@contextmanager
def _side_by_side(count: int) -> Iterator[Executor]:
    """Runs up to `count` things at once. After an exception, what has not begun does not begin any more."""
    with ThreadPoolExecutor(count) as executor:
        try:
            yield executor
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _verdict(outcomes: "Sequence[Outcome]") -> str:
    if any(not check.passed for outcome in outcomes for check in outcome.checks):
        return "DIFFERENT: do not train in a layout that failed"
    if failed := [outcome.case.name for outcome in outcomes if outcome.error is not None]:
        return f"FAILED: {', '.join(dict.fromkeys(failed))} did not get through, so nothing was compared; see the error above"
    return "equal"


def _started_ranks() -> int:
    """How many ranks torchrun has started; 0: this process is no rank."""
    return int(os.environ["WORLD_SIZE"]) if {"RANK", "WORLD_SIZE"} <= os.environ.keys() else 0


def _cases(config: RootConfig, options: Options, started: int) -> Sequence[Case]:
    """Raises VerifyError where the layouts do not fit the ranks."""
    if options.all:
        if started:
            raise VerifyError("--all starts ranks of its own: run it without torchrun")
        return STANDARD
    if options.full_layout:
        case = own_layout(config)
        if started and started != case.ranks:
            raise VerifyError(f"--full-layout: {case.name} needs {case.ranks} ranks, and {started} were started")
    else:
        case = layout_for(config, started) if started else small_layout(config)
    if not started and case.ranks > MOST_PROCESSES:
        raise VerifyError(
            f"--full-layout: {case.name} needs {case.ranks} ranks, too many for this machine; start them with srun torchrun"
        )
    return [case]


def _precisions(config: RootConfig, on_gpu: bool) -> list[Precision]:
    """fp32 shows the smallest mistake; on GPUs the kernels that the run uses (FP8's need larger matrices) come next."""
    exact = config.train.precision is Precision.fp32 or not on_gpu
    return [Precision.fp32] if exact else [Precision.fp32, Precision.bf16]


@contextmanager
def _work_folder(config: RootConfig, starter: Starter) -> Iterator[Path]:
    """A folder that all ranks see, gone afterwards."""
    if not isinstance(starter, BesideTorchrun):
        with tempfile.TemporaryDirectory(prefix="harness-verify-") as folder:
            yield Path(folder)
        return
    made = None
    if starter.main:
        try:
            Path(config.runs_dir).mkdir(parents=True, exist_ok=True)
            made = tempfile.mkdtemp(prefix=".verify-", dir=Path(config.runs_dir).absolute())
        except OSError as error:
            raise VerifyError(
                f"runs_dir={config.runs_dir}: can't write there ({error.strerror}); set a folder that every node sees"
            ) from error
    folder = starter.share(made)
    try:
        yield Path(folder)
    finally:
        if starter.main:
            shutil.rmtree(folder, ignore_errors=True)


def _print_checks(outcomes: "Iterator[Outcome]", config: RootConfig) -> "list[Outcome]":
    from harness.verify.table import checks_table

    found = []
    for outcome in outcomes:
        print(f"{own_layout(config).name}, verified as {outcome.case.name} on {outcome.case.ranks} ranks\n")
        print(checks_table(outcome), flush=True)
        found.append(outcome)
    return found


def _print_rows(outcomes: "Iterator[Outcome]", cases: Sequence[Case]) -> "list[Outcome]":
    from harness.verify.table import layout_header, layout_row

    found: list[Outcome] = []
    width = max(len(case.name) for case in cases)
    for outcome in outcomes:
        if not found:
            print(layout_header(width))
        print(layout_row(outcome, width), flush=True)
        found.append(outcome)
    return found
