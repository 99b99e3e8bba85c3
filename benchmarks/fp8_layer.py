"""A decoder layer in FP8, forward and backward, beside torchao's own conversion and beside bf16: where FP8's time goes.

    python -m benchmarks.fp8_layer [--tokens 16384] [--trace FOLDER]

SmolLM3-3B's layer at sequence 4096 on one GPU, random values, compiled, medians of CUDA events; also the kernels of
`harness.fp8` alone with the memory that they move a second. With --trace, the time of every kernel of a layer as text.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from benchmarks.kernels import milliseconds
from benchmarks.throughput.settings import shape_config
from harness.config.schema import ActivationCheckpoint, AttentionKernel, Fp8Recipe, RootConfig
from harness.fp8.kernels import (
    GRADIENT,
    VALUE,
    cast_both,
    scale_for,
    swiglu_backward_cast,
    swiglu_backward_largest,
    swiglu_cast,
    swiglu_largest,
)
from harness.fp8.weights import Fp8Weights
from harness.model.attention import choose_attention
from harness.model.family import head_dim
from harness.model.init import init_buffers, init_weights
from harness.model.stage import Stage, build_stage
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.mesh import build_meshes, resolve
from harness.parallel.model import OneStageModel, ParallelModel
from harness.parallel.replicated import ReplicatedModel

LAYERS = range(4, 8)
KINDS = ("bf16", "torchao", "fp8 gathered", "fp8")
SEQ = 4096


def build(kind: str, device: torch.device) -> ParallelModel:
    """Layers `LAYERS` as bf16, ours in FP8, ours gathered by FSDP2 (over this one GPU), or torchao's conversion."""
    config = RootConfig(model=shape_config("smollm3_3b"))
    config.cluster.gpus_per_node, config.train.steps, config.train.global_batch_size = 1, 1, 4
    model = config.model
    attention = choose_attention(
        device, torch.bfloat16, wanted=AttentionKernel.auto, document_mask=False, head_dim=head_dim(model),
        heads=model.num_attention_heads, kv_heads=model.num_key_value_heads,
    )  # fmt: skip
    stage = build_stage(model, attention.name, LAYERS, None)
    meshes = build_meshes(resolve(config, 1), "cuda")
    how = Treatment(torch.bfloat16, None, True, ActivationCheckpoint.none, False, sharded=False)
    if kind == "torchao":
        _convert_by_torchao(stage, meshes.fsdp, how)
    else:
        fp8 = None if kind == "bf16" else Fp8Recipe.tensorwise
        parallelize(stage, meshes, replace(how, fp8=fp8, sharded=kind == "fp8 gathered"))
    stage.to_empty(device=device)
    init_buffers(stage)
    init_weights(stage, 0)
    sharded = kind in ("torchao", "fp8 gathered")
    built: ParallelModel = (
        OneStageModel(stage, keep_gathered=False) if sharded else ReplicatedModel(stage, torch.bfloat16, meshes.fsdp)
    )
    if kind.startswith("fp8"):
        built.fp8 = Fp8Weights([stage])
    return built


def _convert_by_torchao(stage: Stage, mesh: Any, how: Treatment) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(Float8LinearConfig.from_recipe_name("tensorwise"), enable_fsdp_float8_all_gather=True)
    policy = MixedPrecisionPolicy(param_dtype=how.dtype, reduce_dtype=torch.float32)
    for layer in stage.layers.values():
        convert_to_float8_training(layer, config=config)
        layer.forward = torch.compile(layer.forward)
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    fully_shard(stage, mesh=mesh, mp_policy=policy, reshard_after_forward=False)


def layer_pass(kind: str, tokens: int, device: torch.device) -> Callable[[], None]:
    """Forward and backward of the layers."""
    model = build(kind, device)
    stage = model.stages[0]
    shape = (tokens // SEQ, SEQ, shape_config("smollm3_3b").hidden_size)
    hidden = torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True)
    upstream = torch.randn(shape, device=device, dtype=torch.bfloat16) / tokens
    places = torch.arange(SEQ, device=device).expand(shape[0], SEQ)
    weights = list(model.parameters.values())
    model.begin_pass()
    if isinstance(model, ReplicatedModel):
        weights = list(model.computing().values())

    def run() -> None:
        stage(hidden, position_ids=places).backward(upstream)
        for tensor in (hidden, *weights):
            tensor.grad = None

    return run


def kernel_rows(tokens: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(what, bytes that it must move, function) of the casts alone."""
    wide = 11008
    gate_up = torch.randn(tokens, 2 * wide, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn(tokens, wide, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(tokens, 2048, device="cuda", dtype=torch.bfloat16)
    one = torch.ones((), device="cuda")
    largest = torch.compile(lambda t: scale_for(t.abs().amax(), VALUE))
    half = tokens * wide
    yield "largest magnitude of x", 2 * x.numel(), partial(largest, x)
    yield "largest magnitude of the wide gradient", 2 * half, partial(largest, gradient)
    yield "cast of x, both ways", 4 * x.numel(), partial(cast_both, x, one, VALUE)
    yield "cast of the wide gradient, both ways", 4 * half, partial(cast_both, gradient, one, GRADIENT)
    yield "largest of SwiGLU", 4 * half, partial(swiglu_largest, gate_up)
    yield "cast of SwiGLU", 5 * half, partial(swiglu_cast, gate_up, one)
    yield "largest of SwiGLU's gradients", 6 * half, partial(swiglu_backward_largest, gate_up, gradient)
    yield (
        "cast of SwiGLU's gradients both ways, and of SwiGLU transposed",
        11 * half,
        partial(swiglu_backward_cast, gate_up, gradient, one, one),
    )


def product_rows(tokens: int) -> Iterator[tuple[str, int, Callable[[], Any]]]:
    """(what, FLOPs, function) of FP8 products, with fast accumulation and without."""
    inverse = torch.full((), 1e-2, device="cuda")
    for name, m, n, k in (
        ("hidden to wide", tokens, 22016, 2048),
        ("wide to hidden", tokens, 2048, 11008),
        ("gradient of wide weights", 22016, 2048, tokens),
        ("hidden to hidden", tokens, 2048, 2048),
    ):
        left = torch.randn(m, k, device="cuda").to(VALUE)
        for dtype in (VALUE, GRADIENT):
            right = torch.randn(n, k, device="cuda").to(dtype)
            for fast in (True, False):
                run = partial(
                    torch._scaled_mm, left, right.t(), inverse, inverse, out_dtype=torch.bfloat16, use_fast_accum=fast
                )
                kind = "e4m3 x " + ("e4m3" if dtype is VALUE else "e5m2")
                yield f"{name}, {kind}, {'fast' if fast else 'full'} accumulation", 2 * m * n * k, run


def trace(run: Callable[[], None], path: Path) -> None:
    """Time of every kernel of one pass, as a table."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    path.write_text(profile.key_averages().table(sort_by="cuda_time_total", row_limit=60, max_name_column_width=110))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=16384, help="a multiple of 4096")
    parser.add_argument("--trace", type=Path, help="folder for a table of all kernels of each kind of layer")
    parser.add_argument("--layers-only", action="store_true", help="leave out the kernels alone")
    options = parser.parse_args()
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {options.tokens} tokens")
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl", init_method=f"file://{folder}/store", rank=0, world_size=1, device_id=device)
        if not options.layers_only:
            for name, moved, function in kernel_rows(options.tokens):
                ms = milliseconds(function)
                print(f"{name:<70} {ms:8.3f} ms {moved / ms / 1e9:8.2f} TB/s", flush=True)
            for name, flops, function in product_rows(options.tokens):
                ms = milliseconds(function)
                print(f"{name:<70} {ms:8.3f} ms {flops / ms / 1e9:8.0f} TFLOP/s", flush=True)
        try:
            for kind in KINDS:
                run = layer_pass(kind, options.tokens, device)
                times = [milliseconds(run, warm_up=5) / len(LAYERS) for _ in range(3)]
                print(f"layer, forward and backward, {kind:<41} {statistics.median(times):8.3f} ms", flush=True)
                if options.trace:
                    trace(run, options.trace / f"{kind.replace(' ', '-')}.txt")
                del run
                torch.cuda.empty_cache()
        finally:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
