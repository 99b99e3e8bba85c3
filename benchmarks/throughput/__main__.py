"""Training speed beside torchtitan's: `python -m benchmarks.throughput [--gpus N]` (GPUs; about a minute a run).

Trains the same shapes with both programs, in turns on the same GPUs, and writes a table of tokens/s/GPU, MFU and memory,
with the raw figures beside it. It is written anew after every run, so nothing is lost where the time ends early. A run
that fails has its reason in its row. The rival needs `pip install torchtitan==0.2.2 torchao`.
"""

import argparse
import dataclasses
import itertools
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.throughput import ours, rival
from benchmarks.throughput.gpus import Gpus, NoGpus, PeakMemory
from benchmarks.throughput.settings import (
    ACTIVATION_CHECKPOINTS,
    OURS,
    PRECISIONS,
    RIVAL,
    WARMUP_STEPS,
    WINDOW_STEPS,
    Measurement,
    Setting,
    shape_config,
)
from benchmarks.throughput.table import Report
from harness.config.compose import ConfigError
from harness.launch.record import git_commit
from harness.train.speed import peak_flops

FREE_SECONDS = 30.0
"""How long the GPUs' memory may take to be free again after a run."""


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that the run under way ends with us
    try:
        for shape in options.shapes:
            shape_config(shape)
        gpus = Gpus(options.gpus)
    except (ConfigError, NoGpus) as error:
        print(error, file=sys.stderr)
        return 2
    planned = list(plan(options))
    print(f"{len(planned)} runs, at most {len(planned) * options.seconds_per_run / 60:.0f} minutes", file=sys.stderr)
    report = Report(
        gpu=f"{options.gpus} x {' and '.join(sorted(set(gpus.names)))}",
        peak_flops=peak_flops(gpus.names[0]) if len(set(gpus.names)) == 1 else None,
        driver=gpus.driver,
        python=platform.python_version(),
        commit=git_commit(),
        command=f"python -m benchmarks.throughput {shlex.join(sys.argv[1:])}".rstrip(),
        measurements=[],
    )
    with tempfile.TemporaryDirectory(prefix="harness-throughput-", ignore_cleanup_errors=True) as name:
        for number, (program, setting) in enumerate(planned, 1):
            folder = Path(name, f"run{number}")
            folder.mkdir()
            report.measurements.append(measure(program, setting, gpus, folder, options.seconds_per_run))
            print(f"{number}/{len(planned)} {said(report.measurements[-1])}", file=sys.stderr, flush=True)
            report.write(options.output)
            shutil.rmtree(folder, ignore_errors=True)
    print(report.render())
    return 0 if any(run.rates for run in report.measurements) else 1


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line. Exits with a message that names option and value where one makes no sense."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of this machine to train on (default 1)")
    parser.add_argument(
        "--shapes", type=names, default=["smollm3_3b"], help="models in conf/model, by commas (default smollm3_3b)"
    )
    parser.add_argument(
        "--precision", type=names, default=["bf16"], help=f"by commas, of {', '.join(PRECISIONS)} (default bf16)"
    )
    parser.add_argument("--micro-batches", type=numbers, default=[2, 4], help="sequences, by commas (default 2,4)")
    parser.add_argument("--steps", type=int, default=40, help=f"of each run; {WARMUP_STEPS} don't count (default 40)")
    parser.add_argument("--repeats", type=int, default=1, help="pairs of runs of each setting (default 1)")
    parser.add_argument("--activation-checkpoint", choices=ACTIVATION_CHECKPOINTS, default="none", help="of both")
    parser.add_argument(
        "--rival", action=argparse.BooleanOptionalAction, default=True, help=f"run {RIVAL} too (default)"
    )
    parser.add_argument(
        "--document-masks",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="one more run of ours with document masks for each shape and precision (default)",
    )
    parser.add_argument("--seconds-per-run", type=float, default=180.0, help="then it is ended (default 180)")
    parser.add_argument(
        "--output", type=Path, default=Path("throughput.md"), help="the table; the raw figures end in .json beside it"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.precision if name not in PRECISIONS]
    if unknown:
        parser.error(f"--precision {','.join(unknown)}: choose from {', '.join(PRECISIONS)}")
    for option in ("gpus", "repeats"):
        if getattr(options, option) < 1:
            parser.error(f"--{option} {getattr(options, option)}: must be at least 1")
    if min(options.micro_batches) < 1:
        parser.error(f"--micro-batches {','.join(map(str, options.micro_batches))}: each must be at least 1")
    if options.steps < WARMUP_STEPS + WINDOW_STEPS or options.steps % WINDOW_STEPS:
        least = WARMUP_STEPS + WINDOW_STEPS
        parser.error(f"--steps {options.steps}: must be a multiple of {WINDOW_STEPS}, at least {least}")
    if options.output.suffix == ".json":
        parser.error(f"--output {options.output}: the table is Markdown; the raw figures go into a .json beside it")
    return options


def names(text: str) -> list[str]:
    """`a,b` as a list. Raises ValueError where there is none."""
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError("nothing is named")
    return found


def numbers(text: str) -> list[int]:
    """`2,4` as a list. Raises ValueError."""
    return [int(name) for name in names(text)]


def plan(options: argparse.Namespace) -> Iterator[tuple[str, Setting]]:
    """All runs in their order: the two programs in turns, so that a machine that slows down slows both."""
    for shape, precision in itertools.product(options.shapes, options.precision):
        settings = [
            Setting(shape, precision, micro_batch, options.gpus, options.steps, options.activation_checkpoint)
            for micro_batch in options.micro_batches
        ]
        for setting, _ in itertools.product(settings, range(options.repeats)):
            yield OURS, setting
            if options.rival:
                yield RIVAL, setting
        if options.document_masks:
            yield OURS, dataclasses.replace(settings[-1], document_mask=True)


def measure(program: str, setting: Setting, gpus: Gpus, folder: Path, seconds: float) -> Measurement:
    """One run, with the memory that it took; returns when the GPUs are free again."""
    began, before = time.monotonic(), gpus.memory_used()
    with PeakMemory(gpus.memory_used) as memory:
        if program == OURS:
            measurement = ours.measure(setting, folder, seconds)
        else:
            measurement = rival.measure(setting, folder, seconds)
    if not gpus.wait_until_free(before, FREE_SECONDS):
        print(f"the memory of {program}'s run is not free after {FREE_SECONDS:.0f} s", file=sys.stderr)
    return dataclasses.replace(measurement, peak_memory_bytes=memory.peak, seconds=time.monotonic() - began)


def said(run: Measurement) -> str:
    """A run in one line, for who waits."""
    setting = run.setting
    what = f"{run.program} {setting.shape} {setting.precision} micro batch {setting.micro_batch}"
    rate = run.tokens_per_second
    return f"{what}: {f'{rate:,.0f} tokens/s/GPU' if rate else run.error} ({run.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
