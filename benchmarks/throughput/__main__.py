"""Training speed beside torchtitan's: `python -m benchmarks.throughput [--gpus N]` (GPUs; about a minute a run).

Trains the same shapes with both programs, in turns on the same GPUs, and writes a table of tokens/s/GPU, MFU and memory,
with the raw figures beside it. It is written anew after every run, so nothing is lost where the time ends early. A run
that fails has its reason in its row. The rival needs `pip install torchtitan==0.2.2 torchao`.

    python -m benchmarks.throughput --lanes                                      # both at once, a GPU each, then swapped
    python -m benchmarks.throughput --gpus 2 --layout fsdp --layout tp=2         # ours in other layouts, against FSDP
    python -m benchmarks.throughput --gpus 2 --layout cp=2 --seq-len 32768 --micro-batches 1
"""

import argparse
import asyncio
import dataclasses
import itertools
import platform
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpus import Gpus, NoGpus, PeakMemory, visible
from benchmarks.processes import run_watched
from benchmarks.throughput import ours, rival
from benchmarks.throughput.layouts import FSDP, Layout, parse_layout
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
from harness.config.errors import ConfigError
from harness.launch.record import git_commit
from harness.train.speed import peak_flops

FREE_SECONDS = 30.0
"""How long the GPUs' memory may take to be free again after a run."""
LANES = 2

Round = list[tuple[str, Setting]]
"""Programs that run at the same time, each on a lane of its own: all GPUs in one, or one GPU each."""


def main() -> int:
    options = parse(sys.argv[1:])
    try:
        for shape in options.shapes:
            shape_config(shape)
        gpus = Gpus(visible(LANES if options.lanes else options.gpus))
        lanes = [Gpus([device]) for device in gpus.devices] if options.lanes else [gpus]
    except (ConfigError, NoGpus) as error:
        print(error, file=sys.stderr)
        return 2
    rounds = list(plan(options))
    count = sum(map(len, rounds))
    print(f"{count} runs, at most {len(rounds) * options.seconds_per_run / 60:.0f} minutes", file=sys.stderr)
    report = Report(
        gpu=f"{len(gpus.devices)} x {' and '.join(sorted(set(gpus.names)))}",
        peak_flops=peak_flops(gpus.names[0]) if len(set(gpus.names)) == 1 else None,
        driver=gpus.driver,
        python=platform.python_version(),
        commit=git_commit(),
        command=f"python -m benchmarks.throughput {shlex.join(sys.argv[1:])}".rstrip(),
        measurements=[],
    )
    run_watched(run_all(rounds, lanes, report, options))
    print(report.render())
    return 0 if any(run.rates for run in report.measurements) else 1


async def run_all(rounds: list[Round], lanes: list[Gpus], report: Report, options: argparse.Namespace) -> None:
    """Run round after round. Each run is in `report`, in its file and on stderr as soon as it is done."""
    numbers, count = itertools.count(1), sum(map(len, rounds))

    async def run(program: str, setting: Setting, lane: Gpus, folder: Path) -> None:
        folder.mkdir()
        measurement = await measure(program, setting, lane, folder, options.seconds_per_run)
        if len(lanes) > 1:
            measurement = dataclasses.replace(measurement, device=lane.devices[0])
        report.measurements.append(measurement)
        report.write(options.output)
        print(f"{next(numbers)}/{count} {said(measurement)}", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)

    with tempfile.TemporaryDirectory(prefix="harness-throughput-", ignore_cleanup_errors=True) as name:
        for number, turns in enumerate(rounds):
            assert len(turns) == len(lanes)
            placed = enumerate(zip(turns, lanes, strict=True))
            await asyncio.gather(
                *(run(*turn, lane, Path(name, f"run{number}-{place}")) for place, (turn, lane) in placed)
            )


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
    parser.add_argument("--seq-len", type=int, default=4096, help="tokens of a sequence (default 4096)")
    parser.add_argument(
        "--layout",
        action="append",
        metavar="NAME=SIZE,...",
        help=f"of our runs, e.g. tp=2; can be repeated; the step has the same tokens in each; {RIVAL} takes part in fsdp "
        "alone (default fsdp, over all GPUs)",
    )
    parser.add_argument(
        "--lanes",
        action="store_true",
        help="with --gpus 1: both programs at once, each on a GPU of its own, then swapped",
    )
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
    for option in ("gpus", "repeats", "seq_len"):
        if getattr(options, option) < 1:
            parser.error(f"--{option.replace('_', '-')} {getattr(options, option)}: must be at least 1")
    if options.lanes and options.gpus != 1:
        parser.error(f"--lanes: each program has one GPU, but --gpus {options.gpus}")
    if min(options.micro_batches) < 1:
        parser.error(f"--micro-batches {','.join(map(str, options.micro_batches))}: each must be at least 1")
    if options.steps < WARMUP_STEPS + WINDOW_STEPS or options.steps % WINDOW_STEPS:
        least = WARMUP_STEPS + WINDOW_STEPS
        parser.error(f"--steps {options.steps}: must be a multiple of {WINDOW_STEPS}, at least {least}")
    options.layouts = []
    for text in options.layout or [FSDP]:
        try:
            options.layouts.append(Layout() if text.upper() == FSDP else parse_layout(text, options.gpus))
        except ValueError as error:
            parser.error(f"--layout {text}: {error}")
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


def plan(options: argparse.Namespace) -> Iterator[Round]:
    """All runs in their order: the two programs in turns, so that a machine that slows down slows both.

    With lanes, each turn is made on both: the two programs side by side, then swapped; a program without the other twice.
    """
    for programs, setting in pairs(options):
        if not options.lanes:
            yield from ([(program, setting)] for program in programs)
        elif len(programs) == LANES:
            yield [(program, setting) for program in programs]
            yield [(program, setting) for program in reversed(programs)]
        else:
            yield [(programs[0], setting)] * LANES


def pairs(options: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Setting]]:
    """Settings in their order, each with the programs that take part."""
    for shape, precision in itertools.product(options.shapes, options.precision):
        settings = [
            Setting(
                shape, precision, micro_batch, options.gpus, options.steps, options.activation_checkpoint,
                seq_len=options.seq_len, layout=layout,
            )
            for micro_batch, layout in itertools.product(options.micro_batches, options.layouts)
        ]  # fmt: skip
        for setting, _ in itertools.product(settings, range(options.repeats)):
            yield ((OURS, RIVAL) if options.rival and setting.layout == Layout() else (OURS,)), setting
        if options.document_masks:
            masked = dataclasses.replace(settings[-1], document_mask=True, layout=options.layouts[0])
            yield (OURS,), masked


async def measure(program: str, setting: Setting, gpus: Gpus, folder: Path, seconds: float) -> Measurement:
    """One run, with the memory that it took; returns when its GPUs are free again."""
    began, before = time.monotonic(), gpus.memory_used()
    with PeakMemory(gpus.memory_used) as memory:
        if program == OURS:
            measurement = await ours.measure(setting, folder, seconds, gpus.devices)
        else:
            measurement = await rival.measure(setting, folder, seconds, gpus.devices)
    if not await gpus.wait_until_free(before, FREE_SECONDS):
        print(f"the memory of {program}'s run is not free after {FREE_SECONDS:.0f} s", file=sys.stderr)
    return dataclasses.replace(measurement, peak_memory_bytes=memory.peak, seconds=time.monotonic() - began)


def said(run: Measurement) -> str:
    """A run in one line, for who waits."""
    setting, rate = run.setting, run.tokens_per_second
    what = [run.program, setting.shape, setting.precision, setting.layout.name(setting.gpus)]
    what += [f"micro batch {setting.micro_batch}"] + ["document masks"] * setting.document_mask
    what += [f"on GPU {run.device}"] if run.device is not None else []
    return f"{' '.join(what)}: {f'{rate:,.0f} tokens/s/GPU' if rate else run.error} ({run.seconds:.0f} s)"


if __name__ == "__main__":
    sys.exit(main())
