"""A trainer that only waits: takes a batch, computes for a fixed time, takes the next; writes down when each step was done.

    python -m benchmarks.loader.consume KIND FOLDER LOG --until UNIX_TIME

KIND is "memmap", "harness", or "harness:SECONDS" for a read-ahead of so many seconds of steps. LOG gets a line a step: its Unix time, and
the seconds that it waited for its batch; ours also leaves a ledger and its error counts beside it.
"""

import argparse
import json
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

from benchmarks.loader.programs import memmap
from benchmarks.loader.programs.ours import loader_over as harness_loader
from benchmarks.loader.shape import SEQ_LEN

STEP_SECONDS = 0.25
SAMPLES = 4
"""Of a step."""
WORKERS = 2
"""Of the DataLoader, each with its two batches ahead."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader.consume", description=__doc__)
    parser.add_argument("kind")
    parser.add_argument("folder", type=Path)
    parser.add_argument("log", type=Path)
    parser.add_argument("--until", type=float, required=True)
    options = parser.parse_args()
    batches = theirs(options.folder) if options.kind == "memmap" else ours(options.kind, options.folder, options.log)
    with options.log.open("w", buffering=1) as log:
        while time.time() < options.until:
            begin = time.perf_counter()
            next(batches)
            waited = time.perf_counter() - begin
            time.sleep(STEP_SECONDS)
            print(f"{time.time():.3f} {waited:.4f}", file=log)
    batches.close()
    sys.exit(0)


def theirs(folder: Path) -> Generator[Any, None, None]:
    """Memory maps and a DataLoader."""
    loader = memmap.loader_over(folder, SAMPLES, WORKERS)
    while True:
        yield from loader


def ours(kind: str, folder: Path, log: Path) -> Generator[Any, None, None]:
    """The harness's loader with its defaults but for the read-ahead, reporting as a rank does."""
    from harness.data.read_settings import ReadSettings, batch_bytes
    from harness.observe.board import Board
    from harness.observe.reads import BoardReads
    from harness.run.folder import Ledger

    _, _, seconds = kind.partition(":")
    settings = ReadSettings()
    if seconds:
        settings = ReadSettings(ahead_bytes=int(float(seconds) / STEP_SECONDS) * batch_bytes(SAMPLES, SEQ_LEN))
    board = Board.open_for_write(log.with_suffix(".board"))
    observer = BoardReads(board, Ledger(log.with_suffix(".events"), 0))
    with harness_loader(folder, SAMPLES, settings, observer) as loader:
        try:
            for batch in loader:
                board.set("step", batch.step)
                yield batch
        finally:
            counts = {"read_errors": board.get("read_errors"), "slow_reads": board.get("slow_reads")}
            log.with_suffix(".counts").write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
