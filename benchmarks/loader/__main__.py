"""The data loader beside others on the same tokens: `python -m benchmarks.loader` (CPU; about five minutes).

Every program reads batches of 8 x 4,096 tokens from files in page cache, in a process of its own, in turns; what it needs
in another format is written before. Then the harness's loader alone: its memory and its first batch at steps from 0 to
the last one of exp=smol3b. `--stall` compares it with a DataLoader on storage that goes cold and fails (root, FUSE).

The rivals want other versions of numpy than the harness. Give them an environment of their own:

    python -m venv RIVALS && RIVALS/bin/pip install torch datasets mosaicml-streaming litdata
    python -m benchmarks.loader --rivals-python RIVALS/bin/python
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.loader.programs import NAMES
from benchmarks.loader.table import Run, Seek, machine, seek_table, speed_table, versions_line
from benchmarks.processes import repository

OURS = "harness"
SEEK_STEPS = (0, 1_000_000, 3_450_000, 4_198_000, 4_719_000)
"""Of exp=smol3b: the start, the ends of its stages, near its end."""
OUR_THREADS = (1, 4)
"""Four are the default."""
LIMIT_SECONDS = 300


def main() -> int:
    options = parse(sys.argv[1:])
    if options.stall:
        from benchmarks.loader.stall import compare

        return compare(options.output.parent)
    with tempfile.TemporaryDirectory(prefix="harness-loader-", dir=options.scratch) as name:
        report = "\n".join(render(options, Path(name)))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(report)
    print(report)
    return 0


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--rivals-python", default=sys.executable, help="interpreter that has them (default: this one)")
    parser.add_argument(
        "--programs", type=lambda text: text.split(","), default=list(NAMES), help="by commas (default all)"
    )
    parser.add_argument(
        "--workers",
        type=lambda text: [int(part) for part in text.split(",")],
        default=[0, 1, 2],
        help="of the rivals (default 0,1,2; nanotron's own default is 1)",
    )
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each run, after a warm-up (default 5)")
    parser.add_argument(
        "--tokens", type=int, default=1 << 27, help="in the files (default 134,217,728: 0.5 GB a program)"
    )
    parser.add_argument("--scratch", type=Path, help="folder for the files (default: the temporary one)")
    parser.add_argument("--output", type=Path, default=Path("loader/loader.md"), help="the table; curves go beside it")
    parser.add_argument("--stall", action="store_true", help="storage that goes cold and fails, instead of speed")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.programs if name not in NAMES]:
        parser.error(f"--programs {','.join(unknown)}: choose from {', '.join(NAMES)}")
    if options.repeats < 1 or options.seconds <= 0 or min(options.workers) < 0:
        parser.error("--repeats must be at least 1, --seconds positive, --workers not negative")
    return options


def render(options: argparse.Namespace, folder: Path) -> Iterator[str]:
    """Measure everything; the report's parts in Markdown."""
    runs = speed(options, folder)
    yield f"    {machine()}; {versions_line(runs)}"
    yield ""
    yield speed_table(runs)
    yield ""
    yield seek_table(seeks(folder))
    yield ""


def speed(options: argparse.Namespace, folder: Path) -> list[Run]:
    """All programs in turns, so that a noisy minute harms all of them alike."""
    ready: list[str] = []
    runs: list[Run] = []
    for name in options.programs:
        say(f"preparing {name}")
        found = call(options, name, "benchmarks.loader.run", "prepare", name, folder, "--tokens", options.tokens)
        if "error" in found:
            runs.append(Run(name, 0, None, error=found["error"]))
        else:
            ready.append(name)
    for _, name in itertools.product(range(options.repeats), ready):
        for workers in OUR_THREADS if name == OURS else options.workers:
            found = call(
                options, name, "benchmarks.loader.run", "measure", name, folder,
                "--workers", workers, "--seconds", options.seconds,
            )  # fmt: skip
            run = Run(
                name, workers, found.get("tokens_per_second"), found.get("peak_mb", 0.0), found.get("error", ""),
                found.get("versions", {}),
            )  # fmt: skip
            runs.append(run)
            say(
                f"{name}, {workers} workers: "
                + (f"{run.tokens_per_second / 1e6:.1f} M tokens/s" if run.tokens_per_second else run.error)
            )
    return runs


def seeks(folder: Path) -> list[Seek]:
    """The harness's loader at several steps of exp=smol3b."""
    found = []
    for step in SEEK_STEPS:
        answer = call(None, OURS, "benchmarks.loader.seek", folder / "smol3b", "--step", step)
        if "error" in answer:
            raise SystemExit(f"step {step}: {answer['error']}")
        found.append(Seek(**answer))
        say(f"step {step:,}: first batch after {found[-1].first_batch_seconds:.3f} s, {found[-1].rss_mb:.0f} MB")
    return found


def call(options: argparse.Namespace | None, name: str, module: str, *arguments: object) -> dict:
    """Run `module` in a process of its own; its last line as JSON, or {"error": why there is none}."""
    python = sys.executable if options is None or name == OURS else options.rivals_python
    command = [python, "-m", module, *map(str, arguments)]
    try:
        done = subprocess.run(command, cwd=repository(), capture_output=True, text=True, timeout=LIMIT_SECONDS)
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {LIMIT_SECONDS} s"}
    except (IndexError, ValueError):
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return {"error": lines[-1][:150] if lines else f"exit code {done.returncode}"}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
