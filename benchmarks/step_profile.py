"""Where a step's time goes on one GPU: `python -m benchmarks.step_profile [--micro-batch 6] [OVERRIDE ...]`

Trains SmolLM3-3B's shape on random tokens, times steps, then traces a few and adds up their kernels by what they are for.
`--kernels N` lists the N that take most by name. Overrides are those of `harness.launch`, such as train.precision=fp8.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from itertools import islice

import torch

from benchmarks.one_gpu import SEQ, timed_steps, trainer_on_random_tokens
from harness.train.setup import Trainer

WARM_UP, BLOCKS, BLOCK_STEPS, TRACED = 6, 3, 6, 3
KINDS = (
    ("attention", ("cudnn", "sdpa", "fmha", "flash")),
    ("matrix products", ("nvjet", "gemm", "cutlass")),
    ("gated activation, with its casts", ("silu", "swiglu", "sigmoid")),
    ("optimizer", ("lerp",)),
    ("loss, but for its products", ("_sums", "_to_gradient")),
    ("norms of gradients and weights", ("LpNorm",)),
    ("other casts, with what is computed on the way", ("cast_both_", "cast", "amax")),
    ("norms, rotary positions, residuals", ("rsqrt", "pow", "neg", "view_add", "add_view")),
)
"""What kernels are for, by parts of their names: the first kind that fits."""
REST = "the rest"

Kernels = dict[str, tuple[float, float]]
"""By name: milliseconds and calls a step."""


def kind(kernel: str) -> str:
    return next((name for name, parts in KINDS if any(part in kernel for part in parts)), REST)


def traced(trainer: Trainer) -> Kernels:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        timed_steps(trainer, islice(trainer.loader, TRACED))
    found: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for event in profile.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            ms, calls = found[event.name]
            found[event.name] = ms + event.device_time / 1000 / TRACED, calls + 1 / TRACED
    return found


def report(step_ms: float, kernels: Kernels, longest: int) -> str:
    """The table of kinds, and that of the kernels that take most."""
    kinds: dict[str, float] = defaultdict(float)
    for name, (ms, _) in kernels.items():
        kinds[kind(name)] += ms
    lines = [f"{step_ms:.1f} ms a step, {sum(kinds.values()):.1f} ms busy", "", "| ms | what |", "|---|---|"]
    lines += [f"| {ms:.1f} | {name} |" for name, ms in sorted(kinds.items(), key=lambda item: -item[1])]
    if longest:
        lines += ["", "| ms | calls | kernel |", "|---|---|---|"]
        by_time = sorted(kernels.items(), key=lambda item: -item[1][0])[:longest]
        lines += [f"| {ms:.2f} | {calls:.0f} | {name[:120]} |" for name, (ms, calls) in by_time]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step_profile", description=__doc__)
    parser.add_argument("--shape", default="smollm3_3b", help="model in conf/model (default smollm3_3b)")
    parser.add_argument("--micro-batch", type=int, default=6, help=f"sequences of {SEQ} tokens (default 6)")
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="list this many kernels by name")
    parser.add_argument("overrides", nargs="*", help="of the config")
    options = parser.parse_intermixed_args()
    if not torch.cuda.is_available():
        print("needs a CUDA device", file=sys.stderr)
        return 2
    overrides = ["data.document_mask=false", *options.overrides]
    steps = WARM_UP + BLOCKS * BLOCK_STEPS + TRACED
    with trainer_on_random_tokens(options.shape, options.micro_batch, steps, overrides) as trainer:
        timed_steps(trainer, islice(trainer.loader, WARM_UP))
        blocks = [timed_steps(trainer, islice(trainer.loader, BLOCK_STEPS)) for _ in range(BLOCKS)]
        kernels = traced(trainer)
    step_ms = 1000 * statistics.median(seconds for _, seconds in blocks)
    tokens = options.micro_batch * SEQ
    print(
        f"    {torch.cuda.get_device_name()}, torch {torch.__version__}; {options.shape}, micro batch {options.micro_batch} "
        f"{' '.join(options.overrides)}; {tokens / step_ms * 1000:,.0f} tokens/s\n"
    )
    print(report(step_ms, kernels, options.kernels))
    return 0


if __name__ == "__main__":
    sys.exit(main())
