"""What watching costs training: `python -m benchmarks.monitor_overhead` (CPU; about 12 minutes).

Trains the same short run with and without the agent's exporter, canary and registration, in turns, while /metrics is scraped
every 5 s as Prometheus would, and compares the median step times of each pair. The ranks write their boards in both cases:
that is part of the trainer and is measured by benchmarks.agent_cost. `--gpus 1` runs it on a GPU.
"""

import argparse
import json
import os
import platform
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from importlib.metadata import version
from pathlib import Path

from harness.run.folder import RunFolder

SKIPPED_STEPS = 10
SCRAPE_SECONDS = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor_overhead", description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="pairs of runs, in alternating order (default 5)")
    parser.add_argument("--steps", type=int, default=100, help="steps of each run (default 100)")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to train on (default 0: one CPU rank)")
    parser.add_argument(
        "--tokens", type=Path, help="folder of token files (default: Python's documentation, prepared here)"
    )
    parser.add_argument("overrides", nargs="*", help="further overrides of exp=tiny, such as a larger model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-overhead-") as name:
        folder = Path(name)
        tokens = options.tokens.resolve() if options.tokens else prepare(folder)
        pairs = []
        for number in range(options.pairs):
            order = ("pull", "off") if number % 2 else ("off", "pull")
            seconds = {mode: step_seconds(folder, tokens, f"{mode}{number}", mode, options) for mode in order}
            pairs.append((seconds["off"], seconds["pull"]))
            print(
                f"pair {number}: off {seconds['off'] * 1e3:.2f} ms, on {seconds['pull'] * 1e3:.2f} ms", file=sys.stderr
            )
    print(render(pairs, options))
    return 0


def prepare(folder: Path) -> Path:
    """Token files made of Python's own documentation."""
    text = folder / "topics.txt"
    text.write_text("\n\n".join(pydoc_data.topics.topics.values()))
    command = [
        sys.executable,
        "-m",
        "harness.data",
        "prepare",
        "--input",
        str(text),
        "--output",
        str(folder / "tokens"),
    ]
    subprocess.run([*command, "--format", "text"], check=True, capture_output=True)
    return folder / "tokens"


def step_seconds(folder: Path, tokens: Path, name: str, mode: str, options: argparse.Namespace) -> float:
    """Median step time of one run in this monitor mode, scraped where there is something to scrape."""
    device = ["cluster.ranks_per_node=1"]
    if options.gpus:
        device = [f"cluster.gpus_per_node={options.gpus}", "cluster.ranks_per_node=null", "train.precision=bf16"]
    command = [
        sys.executable, "-m", "harness.launch", "+exp=tiny", "cluster=local", f"run.name={name}", f"runs_dir={folder / 'runs'}",
        f"data.sources.demo.path={tokens}", f"monitor.mode={mode}", f"train.steps={options.steps}", "schedule.warmup_steps=5",
        "schedule.decay_steps=5", "checkpoint.every_steps=1000000", *device, *options.overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    run = RunFolder(folder / "runs" / name)
    while not any(event["event"] == "attempt_end" for event in run.events()):
        scrape(folder / "runs" / ".targets")
        time.sleep(SCRAPE_SECONDS)
    seconds = [record["step_seconds"] for record in run.metrics()[SKIPPED_STEPS:]]
    if len(seconds) < options.steps - SKIPPED_STEPS:
        raise SystemExit(f"run {name} did not finish; see {run.attempts_dir}")
    return statistics.median(seconds)


def scrape(targets: Path) -> None:
    """Read every registered /metrics once."""
    for path in targets.glob("*.json"):
        try:
            for address in json.loads(path.read_text())["targets"]:
                urllib.request.urlopen(f"http://{address}/metrics", timeout=2).read()
        except (OSError, ValueError, urllib.error.URLError):
            continue  # it ended between our looking and our asking


def render(pairs: list[tuple[float, float]], options: argparse.Namespace) -> str:
    """The table, with what it was measured on."""
    ratios = [on / off - 1 for off, on in pairs]
    what = " ".join(options.overrides) or "exp=tiny"
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {options.gpus} GPUs; Python {platform.python_version()}, "
        f"torch {version('torch')}; {what}, {options.steps} steps a run, scraped every {SCRAPE_SECONDS:.0f} s",
        "",
        "| pair | without ms | with ms | difference |",
        "|---|---|---|---|",
        *(f"| {i} | {off * 1e3:.2f} | {on * 1e3:.2f} | {on / off - 1:+.2%} |" for i, (off, on) in enumerate(pairs)),
        "",
        f"median difference of {len(pairs)} pairs: {statistics.median(ratios):+.2%}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
