"""Memory and first batch at several steps of exp=smol3b, each in a process of its own: the last line of stdout is JSON.

The sources are as large as what the run takes from them, in sparse files: 44 TB that take no space.
"""

import argparse
import json
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path

from benchmarks.loader.table import Seek
from harness.data.observer import NullObserver

FILE_TOKENS = 5_000_000_000
BATCHES = 500
"""Taken before memory is looked at."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader.seek", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--step", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(asdict(look(options.folder, options.step))), flush=True)
    os._exit(0)


def look(folder: Path, step: int) -> Seek:
    """Start a loader after `step` steps, as one of the run's data-parallel ranks."""
    from harness.config.compose import compose
    from harness.config.layout import layout
    from harness.data.loader import Loader
    from harness.data.order import SampleOrder
    from harness.data.token_files import open_source

    config = compose(
        ["+exp=smol3b", *(f"data.sources.{name}.path={folder / name}" for name in ("web", "code", "math"))]
    )
    data, train = config.data, config.train
    write_sources(folder, config)
    sources = [open_source(name, source.path) for name, source in data.sources.items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        order = SampleOrder(
            sources, data.stages, seed=data.seed, seq_len=data.seq_len, global_batch_size=train.global_batch_size
        )
    begin = time.perf_counter()
    order.sample(step * train.global_batch_size)
    looked_up = time.perf_counter() - begin
    queue = _Queue()
    begin = time.perf_counter()
    loader = Loader(
        sources,
        order,
        global_batch_size=train.global_batch_size,
        micro_batch_size=train.micro_batch_size,
        dp_rank=0,
        dp_size=layout(config).dp,
        start_step=step,
        seq_len=data.seq_len,
        eos_token_id=data.eos_token_id,
        document_mask=data.document_mask,
        vocab_size=config.model.vocab_size,
        observer=queue,
    )
    with loader:
        next(loader)
        seconds = time.perf_counter() - begin
        for _ in range(BATCHES):
            next(loader)
        _wait_until_still(queue)
        return Seek(step, seconds, looked_up, resident_mb())


class _Queue(NullObserver):
    """Knows how many batches are ready."""

    def __init__(self) -> None:
        self.batches = 0

    def queue(self, batches: int, cpu_seconds: float) -> None:
        self.batches = batches


def _wait_until_still(queue: _Queue) -> None:
    """Return once the queue is full: it grows no more."""
    before = -1
    while queue.batches != before:
        before = queue.batches
        time.sleep(2)


def write_sources(folder: Path, config: object) -> None:
    """Sparse files with as many tokens as the run reads of each source."""
    data, train = config.data, config.train  # type: ignore[attr-defined]
    needed = dict.fromkeys(data.sources, 0.0)
    previous = 0
    for stage in data.stages:
        steps = (stage.until_step or train.steps) - previous
        previous += steps
        for name, weight in stage.weights.items():
            needed[name] += weight * steps * train.global_batch_size * data.seq_len
    for name, tokens in needed.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(-(-int(tokens) // FILE_TOKENS)):
            path = folder / name / f"{number:05d}.ds"
            if not path.exists():
                path.touch()
                os.truncate(path, 4 * FILE_TOKENS)
            metadata = path.with_name(f"{path.name}.metadata")
            if not metadata.exists():
                metadata.write_text(f"some/tokenizer|4\n{FILE_TOKENS}\n5 BT")


def resident_mb() -> float:
    """Memory of this process."""
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    main()
