"""Whether FP8 learns like bf16: the loss of both on the same real tokens, step by step. Needs a GPU with FP8 units.

    python -m benchmarks.fp8_loss --tokens corpus/tokens --output DIR [--steps 500]

Trains a SmolLM3 of 180 million parameters (wide enough for its matrices to be in FP8) in bf16, in FP8 with both recipes,
and in bf16 from another seed: how far two bf16 runs lie apart is the noise that the FP8 runs are held against. Runs that
are given different GPUs (CUDA_VISIBLE_DEVICES) can be made side by side with --only. `make demo` prepares the tokens.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

MODEL = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
}
RUNS = {
    "bf16": ["train.precision=bf16"],
    "bf16-other-seed": ["train.precision=bf16", "train.seed=1"],
    "fp8-tensorwise": ["train.precision=fp8", "train.fp8_recipe=tensorwise"],
    "fp8-rowwise": ["train.precision=fp8", "train.fp8_recipe=rowwise"],
}
SEQ, BATCH = 1024, 16
LAST = 100
"""Steps at the end over which runs are compared: single steps differ by the luck of their batch."""


def train(name: str, tokens: Path, output: Path, steps: int) -> None:
    """One run, with its folder in `output`. Exits with the launcher's message where it fails."""
    command = [
        sys.executable, "-m", "harness.launch", "+exp=tiny", "cluster=local", "cluster.gpus_per_node=1",
        "cluster.ranks_per_node=null", f"run.name={name}", f"runs_dir={output}", "follow=true",
        *(f"model.{key}={value}" for key, value in MODEL.items()),
        f"data.seq_len={SEQ}", f"data.sources.demo.path={tokens.resolve()}",
        f"train.steps={steps}", f"train.micro_batch_size={BATCH}", f"train.global_batch_size={BATCH}",
        "optim.lr=1e-3", f"schedule.warmup_steps={steps // 10}", f"schedule.decay_steps={steps // 5}",
        f"checkpoint.every_steps={steps + 1}", *RUNS[name],
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def losses(run: Path) -> list[float]:
    """The loss of every step; empty where there was no such run."""
    path = run / "metrics.jsonl"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


def compare(output: Path) -> str:
    """A table of all runs in `output` against the first."""
    found = {name: losses(output / name) for name in RUNS}
    base = found["bf16"]
    lines = [
        "| run | steps | loss, last 100 steps | difference from bf16 | largest difference of 100-step means |",
        "|---|---|---|---|---|",
    ]
    for name, values in found.items():
        if not values or not base:
            continue
        mean = statistics.fmean(values[-LAST:])
        windows = range(0, min(len(values), len(base)) - LAST + 1, LAST // 2)
        apart = max(abs(statistics.fmean(values[i : i + LAST]) - statistics.fmean(base[i : i + LAST])) for i in windows)
        lines.append(
            f"| {name} | {len(values)} | {mean:.4f} | {mean - statistics.fmean(base[-LAST:]):+.4f} | {apart:.4f} |"
        )
    return "\n".join(lines)


def draw(output: Path) -> None:
    """The curves as a picture, where matplotlib is installed."""
    try:
        import matplotlib
    except ImportError:
        print("no picture: pip install matplotlib")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5))
    for name in RUNS:
        values = losses(output / name)
        smooth = [statistics.fmean(values[max(0, i - 9) : i + 1]) for i in range(len(values))]
        axes.plot(range(1, len(smooth) + 1), smooth, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss, mean of 10 steps", title="FP8 against bf16, 180 M parameters, real tokens")
    axes.legend()
    figure.savefig(output / "fp8_loss.png", dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=Path, required=True, help="folder of token files with a vocabulary of 4,096")
    parser.add_argument("--output", type=Path, required=True, help="folder for the runs, the table and the picture")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--only", choices=RUNS, action="append", help="make this run alone; can be repeated")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.only or RUNS:
        train(name, options.tokens, options.output, options.steps)
    table = compare(options.output)
    (options.output / "fp8_loss.md").write_text(table + "\n")
    draw(options.output)
    print(table)


if __name__ == "__main__":
    main()
