"""One program in a process of its own: `prepare` its files, or `measure` its batches; the last line of stdout is JSON."""

import argparse
import json
import os
import resource
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.loader.programs import program
from benchmarks.loader.shape import BATCH, SEQ_LEN, write_shards

WARM_SECONDS = 2.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader.run", description=__doc__)
    parser.add_argument("task", choices=("prepare", "measure"))
    parser.add_argument("program")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=1 << 27)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    own = options.folder / program(options.program).__name__.rpartition(".")[2]
    if options.task == "prepare":
        own.mkdir()
        program(options.program).prepare(write_shards(options.folder / "tokens", options.shards, options.tokens), own)
        found: dict[str, Any] = {}
    else:
        found = measure(options.program, own, options.workers, options.seconds)
    print(json.dumps(found), flush=True)
    os._exit(0)  # workers of some loaders take their time to end


def measure(name: str, folder: Path, workers: int, seconds: float) -> dict[str, Any]:
    """Tokens per second after a warm-up, and what versions did it."""
    stream = program(name).batches(folder, workers)
    inputs, labels = next(stream)
    assert inputs.shape == labels.shape == (BATCH, SEQ_LEN) and str(inputs.dtype) in ("torch.int64", "torch.int32")
    assert bool((inputs[:, 1:] == labels[:, :-1]).all())
    warm = time.perf_counter() + WARM_SECONDS
    while time.perf_counter() < warm:
        next(stream)
    begin, tokens = time.perf_counter(), 0
    while time.perf_counter() < begin + seconds:
        next(stream)
        tokens += BATCH * SEQ_LEN
    elapsed = time.perf_counter() - begin
    return {
        "tokens_per_second": tokens / elapsed,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "versions": versions(program(name).PACKAGES),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main()
