"""Whether FP8 learns like bf16: the loss of both on the same real tokens, step by step. Needs a GPU with FP8 units.

    python -m benchmarks.fp8_loss --tokens corpus/tokens --output DIR [--steps 500] [--lanes]

Trains a SmolLM3 of 180 million parameters (wide enough for its matrices to be in FP8) in bf16, in FP8, and in bf16 from
another seed: how far two bf16 runs lie apart is the noise that FP8 is held against. A run takes about two minutes on an
H200; with --lanes two run side by side, each on a GPU of its own. Table and picture are made anew after every run, and
runs that are finished in DIR already are not made again. `make demo` prepares the tokens.
"""

import argparse
import asyncio
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpus import Gpus, NoGpus, environment, visible
from benchmarks.processes import end_group, refusal, run_watched, start, watch
from harness.run.folder import RunFolder

MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
BASE = "bf16"
RUNS = {
    BASE: ["train.precision=bf16"],
    "fp8-tensorwise": ["train.precision=fp8", "train.fp8_recipe=tensorwise"],
    "bf16-other-seed": ["train.precision=bf16", "train.seed=1"],
    "fp8-rowwise": ["train.precision=fp8", "train.fp8_recipe=rowwise"],
}
DEFAULT = ("bf16", "fp8-tensorwise", "bf16-other-seed")
"""The recipe that is not the default one is made on request."""
SEQ, BATCH = 1024, 16
LAST = 100
"""Steps whose mean is compared: single steps differ by the luck of their batch."""
LANES = 2


class Failed(Exception):
    """A run ended before its time; the message says why."""


def command(name: str, tokens: Path, output: Path, steps: int) -> list[str]:
    """One run, with its folder in `output`."""
    return [
        sys.executable, "-m", "harness.launch", "+exp=tiny", "cluster=local", "cluster.gpus_per_node=1",
        "cluster.ranks_per_node=null", f"run.name={name}", f"runs_dir={output.resolve()}", "follow=true",
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        f"data.seq_len={SEQ}", f"data.sources.demo.path={tokens.resolve()}",
        f"train.steps={steps}", f"train.micro_batch_size={BATCH}", f"train.global_batch_size={BATCH}",
        "optim.lr=1e-3", f"schedule.warmup_steps={steps // 10}", f"schedule.decay_steps={steps // 5}",
        f"checkpoint.every_steps={steps + 1}", *RUNS[name],
    ]  # fmt: skip


async def train(name: str, tokens: Path, output: Path, steps: int, devices: Sequence[int]) -> None:
    """Make one run on these GPUs (none: the first that it finds). Raises Failed."""
    log = output / f"{name}.log"
    log.unlink(missing_ok=True)
    process = start(command(name, tokens, output, steps), log, environment(devices))
    try:
        code = await watch(process.poll, math.inf)
    finally:
        end_group(process)
    if code:
        raise Failed(f"{name} failed, see {log}: {refusal(log)}")


async def train_all(names: Sequence[str], lanes: Sequence[Sequence[int]], options: argparse.Namespace) -> list[str]:
    """Make the runs that are not finished yet, each on the first lane that is free; why some failed."""
    waiting, failures = iter(names), []

    async def work(devices: Sequence[int]) -> None:
        for name in waiting:
            if len(losses(options.output / name)) >= options.steps:
                continue
            try:
                await train(name, options.tokens, options.output, options.steps, devices)
            except Failed as failure:
                failures.append(str(failure))
            done = len(losses(options.output / name))
            print(f"{name}: {done} of {options.steps} steps", file=sys.stderr, flush=True)
            write(options.output, options.steps)

    await asyncio.gather(*(work(devices) for devices in lanes))
    return failures


def losses(run: Path) -> list[float]:
    """The loss of every step, NaN where it was not finite; empty where there was no such run."""
    return [math.nan if line["loss"] is None else line["loss"] for line in RunFolder(run).metrics()]


def compare(output: Path, steps: int) -> str:
    """A table of all runs in `output` against the first, over the steps that both have. A run of fewer than `steps` is
    shown as not finished."""
    base = losses(output / BASE)
    lines = [
        f"| run | steps | loss, last {LAST} steps | difference from {BASE} | largest difference of {LAST}-step means |",
        "|---|---|---|---|---|",
    ]
    for name in RUNS:
        values = losses(output / name)
        if not values:
            continue
        done = f"{len(values)}" if len(values) >= steps else f"{len(values)} of {steps}"
        last, difference = f"{statistics.fmean(values[-LAST:]):.4f}", "-"
        if len(values) < steps:
            last = "not finished"
        elif len(base) >= steps:
            difference = f"{statistics.fmean(values[-LAST:]) - statistics.fmean(base[-LAST:]):+.4f}"
        apart = largest_difference(values, base)
        lines.append(f"| {name} | {done} | {last} | {difference} | {'-' if apart is None else f'{apart:.4f}'} |")
    return "\n".join(lines)


def largest_difference(values: list[float], base: list[float]) -> float | None:
    """Between the means over the same LAST steps, wherever both have them; None where they never do."""
    starts = range(0, min(len(values), len(base)) - LAST + 1, LAST // 2)
    return max(
        (abs(statistics.fmean(values[i : i + LAST]) - statistics.fmean(base[i : i + LAST])) for i in starts),
        default=None,
    )


def draw(output: Path) -> Path | None:
    """The curves as a picture, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib", file=sys.stderr)
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in RUNS:
        if values := losses(output / name):
            smooth = [statistics.fmean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
            axes.plot(range(1, len(smooth) + 1), smooth, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, mean of 10 steps", title="FP8 against bf16, 180 M parameters, real tokens")
    axes.legend()
    path = output / "fp8_loss.png"
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path


def write(output: Path, steps: int) -> str:
    """The table, also into its file, and the picture."""
    table = compare(output, steps)
    (output / "fp8_loss.md").write_text(table + "\n")
    draw(output)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fp8_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token files with a vocabulary of 4,096")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs, the table and the picture")
    parser.add_argument("--steps", type=int, default=500, help=f"of each run, at least {LAST} (default 500)")
    parser.add_argument("--lanes", action="store_true", help="two runs side by side, each on a GPU of its own")
    parser.add_argument(
        "--only", choices=RUNS, action="append", help=f"make this run; can be repeated (default {', '.join(DEFAULT)})"
    )
    options = parser.parse_args()
    if options.steps < LAST:
        parser.error(f"--steps {options.steps}: means are taken over {LAST} steps")
    try:
        lanes = [[device] for device in Gpus(visible(LANES)).devices] if options.lanes else [[]]
    except NoGpus as error:
        parser.error(f"--lanes: {error}")
    options.output.mkdir(parents=True, exist_ok=True)
    failures = run_watched(train_all(options.only or DEFAULT, lanes, options))
    print(write(options.output, options.steps))
    print("\n".join(failures), file=sys.stderr, end="\n" * bool(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
