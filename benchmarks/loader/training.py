"""What the loader costs training: `python -m benchmarks.loader.training` (one GPU, a few minutes).

Trains SmolLM3-3B's shape in blocks of steps, in turns on batches of the loader and on one batch over and over, both with
document masks, and compares the median step times. The queue is the loader's own, and reading goes on in both.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.throughput.tokens import END_OF_DOCUMENT, write_random_tokens

BLOCK_STEPS = 8
WARM_UP = 6


def main() -> int:
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader.training", description=__doc__)
    parser.add_argument("--model", default="smollm3_3b")
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=6, help="blocks of each kind (default 6)")
    parser.add_argument("overrides", nargs="*", help="of the config")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="harness-loader-training-") as name:
        rows = list(blocks(options, Path(name)))
    with_loader = [seconds for kind, seconds in rows if kind == "loader"]
    constant = [seconds for kind, seconds in rows if kind == "constant"]
    print(
        f"    {torch.cuda.get_device_name()}, torch {torch.__version__}; {options.model}, micro batch {options.micro_batch}"
    )
    print("\n| block | loader ms a step | constant batch ms a step | difference |\n|---|---|---|---|")
    for number, (ours, base) in enumerate(zip(with_loader, constant, strict=True)):
        print(f"| {number} | {1000 * ours:.2f} | {1000 * base:.2f} | {ours / base - 1:+.2%} |")
    ratio = statistics.median(ours / base for ours, base in zip(with_loader, constant, strict=True))
    print(f"\nMedian difference {ratio - 1:+.2%}.")
    return 0


def blocks(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, float]]:
    """Seconds a step of each block, in turns."""
    import torch

    from harness.config.compose import compose
    from harness.run.folder import RunFolder
    from harness.train.process import Place
    from harness.train.setup import set_up

    tokens = write_random_tokens(folder / "tokens", 128_256)
    steps = WARM_UP + 2 * options.pairs * BLOCK_STEPS + 10
    config = compose(
        [
            "cluster=local", "cluster.gpus_per_node=1", f"model={options.model}", "data.seq_len=4096",
            f"+data.sources.random.path={tokens}", "data.stages=[{name: random, weights: {random: 1.0}}]",
            f"data.eos_token_id={END_OF_DOCUMENT}", f"train.micro_batch_size={options.micro_batch}",
            f"train.global_batch_size={options.micro_batch}", f"train.steps={steps}", f"runs_dir={folder}", "run.name=run",
            "train.activation_checkpoint=none", *options.overrides,
        ]
    )  # fmt: skip
    run = RunFolder(folder / "run")
    run.create()
    run.save_config(config)
    run.attempt_dir(0).mkdir(parents=True)
    os.environ |= {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29511",
    }  # fmt: skip
    trainer = set_up(run, config, Place.from_environment(os.environ), folder / "boards")
    lr = 1e-5

    def block(kind: str, count: int) -> float:
        torch.cuda.synchronize()
        begin = time.perf_counter()
        pending = None
        for _ in range(count):
            batch = next(trainer.loader) if kind == "loader" else constant
            queued = trainer.stepper.run(batch, lr, stop=False, fenced=False, with_statistics=False)
            if pending is not None:
                pending.result()  # one step late, as in a run
            pending = queued
        torch.cuda.synchronize()
        return (time.perf_counter() - begin) / count

    constant = next(trainer.loader)
    block("loader", WARM_UP)
    for number in range(options.pairs):
        for kind in ("loader", "constant") if number % 2 else ("constant", "loader"):
            seconds = block(kind, BLOCK_STEPS)
            print(f"{kind}: {1000 * seconds:.2f} ms", file=sys.stderr, flush=True)
            yield kind, seconds
    trainer.loader.close()


if __name__ == "__main__":
    sys.exit(main())
