"""What the loader costs training: `python -m benchmarks.loader.training` (one GPU, a few minutes).

Trains SmolLM3-3B's shape in blocks of steps, in turns on batches as the loader brings them and on the same batches again,
which are in memory by then, and compares the step times. (One batch over and over would not do: how long attention takes
depends on a batch's documents.) The queue is the loader's own, and reading goes on in both.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from itertools import islice

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
    rows = list(blocks(options))
    print(
        f"    {torch.cuda.get_device_name()}, torch {torch.__version__}; {options.model}, micro batch {options.micro_batch}"
    )
    print("\n| block | loader ms a step | the same from memory ms a step | difference |\n|---|---|---|---|")
    for number, (ours, base) in enumerate(rows):
        print(f"| {number} | {1000 * ours:.2f} | {1000 * base:.2f} | {ours / base - 1:+.2%} |")
    ratio = statistics.median(ours / base for ours, base in rows)
    print(f"\nMedian difference {ratio - 1:+.2%}.")
    return 0


def blocks(options: argparse.Namespace) -> Iterator[tuple[float, float]]:
    """Seconds a step of each block: from the loader, and again from memory."""
    from benchmarks.one_gpu import timed_steps, trainer_on_random_tokens

    steps = WARM_UP + options.pairs * BLOCK_STEPS
    with trainer_on_random_tokens(options.model, options.micro_batch, steps, options.overrides) as trainer:
        timed_steps(trainer, islice(trainer.loader, WARM_UP))
        for _ in range(options.pairs):
            kept, from_loader = timed_steps(trainer, islice(trainer.loader, BLOCK_STEPS))
            _, from_memory = timed_steps(trainer, kept)
            print(
                f"loader {1000 * from_loader:.2f} ms, memory {1000 * from_memory:.2f} ms", file=sys.stderr, flush=True
            )
            yield from_loader, from_memory


if __name__ == "__main__":
    sys.exit(main())
