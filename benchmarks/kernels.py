"""Time of the pieces that a step on a GPU consists of, each against what it replaces.

    python -m benchmarks.kernels [--tokens 16384]

Shapes are SmolLM3-3B's at sequence 4096 in bf16; times are medians of CUDA events, forward and backward together.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from harness.model.attention_kernels import CUDNN, FLASH, FLASH4, Kernel
from harness.model.linear_cross_entropy import linear_cross_entropy

SEQ, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, FFN, VOCAB = 4096, 16, 4, 128, 2048, 11008, 128256
DOCUMENT = 1024
"""Mean length of the documents in the rows called `documents`."""


def milliseconds(function: Callable[[], Any], warm_up: int = 3, repeats: int = 10) -> float:
    """Median time of `function` on the device."""
    times = []
    for number in range(warm_up + repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function()
        end.record()
        end.synchronize()
        if number >= warm_up:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def attention_rows(tokens: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    batch = tokens // SEQ
    draw = np.random.default_rng(0)
    cuts = np.unique(np.concatenate([np.arange(0, tokens + 1, SEQ), draw.integers(1, tokens, tokens // DOCUMENT)]))
    documents = torch.tensor(cuts, dtype=torch.int32, device="cuda")
    whole = torch.arange(0, tokens + 1, SEQ, dtype=torch.int32, device="cuda")
    shapes = [(batch, heads, SEQ, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    dense = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    flat = [t.detach().transpose(1, 2).reshape(tokens, -1, HEAD_DIM).requires_grad_() for t in dense]
    upstream = torch.randn(batch, SEQ, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    scale = HEAD_DIM**-0.5

    def run_dense(kernel: Kernel) -> None:
        query, key, value = dense
        torch.autograd.grad(kernel.dense(query, key, value, scale), dense, upstream)

    def run_segments(kernel: Kernel, cu: torch.Tensor) -> None:
        assert kernel.segments is not None
        query, key, value = flat
        out = kernel.segments(query, key, value, cu, cu, SEQ, SEQ, scale)
        torch.autograd.grad(out, flat, upstream.view(tokens, HEADS, HEAD_DIM))

    for name, kernel in (("flash", FLASH), ("cudnn", CUDNN), ("flash4", FLASH4)):
        yield f"attention, {name}, causal", partial(run_dense, kernel)
        if kernel.segments is None:
            continue
        yield f"attention, {name}, causal as segments", partial(run_segments, kernel, whole)
        yield f"attention, {name}, {len(documents) - 1} documents", partial(run_segments, kernel, documents)


def loss_rows(tokens: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    hidden = torch.randn(tokens, HIDDEN, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = (0.02 * torch.randn(VOCAB, HIDDEN, device="cuda", dtype=torch.bfloat16)).requires_grad_()
    targets = torch.randint(0, VOCAB, (tokens,), device="cuda")

    def score(h: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return cross_entropy((h @ weight.T).float(), t, reduction="sum")

    def chunked(chunk: int) -> None:
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        loss = torch.stack([checkpoint(score, h, t, use_reentrant=False) for h, t in pieces]).sum()
        torch.autograd.grad(loss, [hidden, weight])

    def fused(chunk: int) -> None:
        torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, chunk=chunk)[0], [hidden, weight])

    yield "loss, chunks of 1024 computed twice", lambda: chunked(1024)
    for chunk in (1024, 2048, 4096, 8192):
        yield f"loss, fused, chunks of {chunk}", partial(fused, chunk)


def product(x: torch.Tensor, weight: torch.Tensor, upstream: torch.Tensor) -> None:
    torch.autograd.grad(x @ weight.T, [x, weight], upstream)


def product_rows(tokens: int) -> Iterator[tuple[str, Callable[[], Any]]]:
    for rows, columns in (
        (HIDDEN, HIDDEN),
        (KV_HEADS * HEAD_DIM, HIDDEN),
        (FFN, HIDDEN),
        (HIDDEN, FFN),
        (2 * FFN, HIDDEN),
    ):
        x = torch.randn(tokens, columns, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(rows, columns, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        upstream = torch.randn(tokens, rows, device="cuda", dtype=torch.bfloat16)
        flops = 6 * tokens * rows * columns
        yield (
            f"product {columns} -> {rows} ({flops / 1e12:.2f} TFLOP)",
            partial(product, x, weight, upstream),
        )


def update_rows(count: int = 2**30) -> Iterator[tuple[str, Callable[[], Any]]]:
    from harness.config.schema import OptimConfig
    from harness.optim.optimizer import build_optimizer

    parameter = torch.nn.Parameter(torch.rand(count, device="cuda"))
    parameter.grad = torch.rand(count, device="cuda")
    fused = torch.optim.AdamW([parameter], fused=True)
    ours = build_optimizer({"weight": parameter}, OptimConfig())
    lr, scale, skip = (torch.tensor(value, device="cuda") for value in (1e-4, 1.0, 0.0))
    yield "update of 1.07 B weights, torch's fused AdamW", fused.step
    yield "update of 1.07 B weights, ours, clipping and skipping included", lambda: ours.step(lr, scale, skip)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a micro batch, a multiple of 4096")
    tokens = parser.parse_args().tokens
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {tokens} tokens")
    for rows in (attention_rows(tokens), loss_rows(tokens), product_rows(tokens), update_rows()):
        try:
            for name, function in rows:
                try:
                    print(f"{name:<64} {milliseconds(function):8.2f} ms", flush=True)
                except Exception as error:  # a kernel that is missing here must not hide the others
                    print(f"{name:<64} {type(error).__name__}: {str(error).splitlines()[0][:120]}", flush=True)
        except ImportError as error:
            print(f"left out: {error}")


if __name__ == "__main__":
    main()
