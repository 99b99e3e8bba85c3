"""Checks of how the ranks divide the work. Each problem names the nearest values that are possible."""

import math
from collections.abc import Iterator

from harness.config.layout import Layout, effective_tp, layout, ranks_per_node, stages_per_rank
from harness.config.nearest import divisors, nearest, nearest_multiples
from harness.config.schema import ClusterKind, PipelineSchedule, Precision, RootConfig
from harness.model.family import attention_widths, tensor_parallel_divides

FP8_MULTIPLE = 16
"""Every side of an FP8 matrix product must be a multiple of this: the GPU's instruction takes no other."""


def check_parallel(config: RootConfig) -> Iterator[str]:
    """What is wrong with `parallel`, the batch that it divides and the precision that it computes in."""
    wrong_sizes = list(_check_sizes(config))
    yield from wrong_sizes
    if not wrong_sizes and _world(config) > 0:
        yield from _check_fit(config)
    if config.train.precision is Precision.fp8:
        yield from _check_fp8(config)


def _check_sizes(config: RootConfig) -> Iterator[str]:
    parallel = config.parallel
    for name in ("dp_replicate", "tp", "cp", "pp"):
        if getattr(parallel, name) < 1:
            yield f"parallel.{name}={getattr(parallel, name)}: must be at least 1"
    if parallel.dp_shard < 1 and parallel.dp_shard != -1:
        yield f"parallel.dp_shard={parallel.dp_shard}: must be at least 1; -1 takes all ranks that are left"
    if parallel.pp > 1 and parallel.pp_schedule is PipelineSchedule.interleaved and parallel.pp_stages_per_rank < 2:
        yield (
            f"parallel.pp_stages_per_rank={parallel.pp_stages_per_rank}: interleaved needs at least 2; set 2, or "
            "parallel.pp_schedule=1f1b"
        )


def _check_fit(config: RootConfig) -> Iterator[str]:
    """Sizes that are numbers, held against the model, the sequence, the nodes and the batch."""
    yield from _check_tensor(config)
    yield from _check_context(config)
    yield from _check_stages(config)
    problem = _world_problem(config)
    if problem:
        yield problem
    elif config.train.micro_batch_size > 0 and config.train.global_batch_size > 0:
        yield from _check_batch(config, layout(config))


def _check_tensor(config: RootConfig) -> Iterator[str]:
    tp, cp = effective_tp(config), config.parallel.cp
    whole = tensor_parallel_divides(config.model)
    if config.data.seq_len % cp == 0:
        whole[f"data.seq_len / parallel.cp={cp}" if cp > 1 else "data.seq_len"] = config.data.seq_len // cp
    whole["ranks of a node"] = ranks_per_node(config)
    if min(whole.values()) < 1:
        return  # said elsewhere
    failed = [f"{name} ({size})" for name, size in whole.items() if size % tp]
    if failed:
        possible = nearest(tp, divisors(math.gcd(*whole.values())))
        yield f"parallel.tp={tp}: must divide {', '.join(failed)}; nearest possible: {possible}"


def _check_context(config: RootConfig) -> Iterator[str]:
    cp, seq_len = config.parallel.cp, config.data.seq_len
    if cp > 1 and seq_len > 0 and seq_len % (2 * cp):
        # each rank takes one piece from the front and one from the back, so that all have as much to attend to
        possible = [n for n in divisors(_world(config)) if n == 1 or seq_len % (2 * n) == 0]
        lengths = nearest_multiples(seq_len, 2 * cp, most=config.model.max_position_embeddings)
        yield (
            f"parallel.cp={cp}: 2 x cp must divide data.seq_len={seq_len}; nearest possible: "
            f"parallel.cp={nearest(cp, possible)}" + (f", or data.seq_len={lengths}" if lengths else "")
        )


def _check_stages(config: RootConfig) -> Iterator[str]:
    pp, each, layers = config.parallel.pp, stages_per_rank(config), config.model.num_hidden_layers
    if layers < 1 or layers % (pp * each) == 0:
        return
    ranks = [n for n in divisors(_world(config)) if n == 1 or layers % (n * each) == 0]
    fits = [f"parallel.pp={nearest(pp, ranks)}"]
    made = f"{pp} stages"
    if each > 1:
        made = f"{pp * each} stages with parallel.pp_stages_per_rank={each}"
        if text := nearest(each, [n for n in divisors(layers) if n > 1 and layers % (n * pp) == 0]):
            fits.append(f"parallel.pp_stages_per_rank={text}")
    yield (
        f"parallel.pp={pp}: makes {made}, which do not divide model.num_hidden_layers={layers}; nearest possible: "
        f"{', or '.join(fits)}"
    )


def _world(config: RootConfig) -> int:
    return config.cluster.nodes * ranks_per_node(config)


def _world_problem(config: RootConfig) -> str | None:
    """Why the parallel sizes do not make the ranks there are, and what would."""
    parallel, nodes, per_node, world = config.parallel, config.cluster.nodes, ranks_per_node(config), _world(config)
    others = parallel.pp * parallel.dp_replicate * parallel.cp * parallel.tp
    takes_rest = parallel.dp_shard == -1
    product = others if takes_rest else others * parallel.dp_shard
    if world % product == 0 if takes_rest else world == product:
        return None
    fits = [*_fitting_sizes(config, world), *_fitting_worlds(config, product)] or [f"sizes whose product is {world}"]
    return (
        f"parallel: pp={parallel.pp} x dp_replicate={parallel.dp_replicate} x dp_shard={parallel.dp_shard} x "
        f"cp={parallel.cp} x tp={parallel.tp} does not make the {world} ranks of {nodes} node{'s' * (nodes > 1)} x {per_node}; "
        f"nearest possible: {', or '.join(fits)}"
    )


def _fitting_sizes(config: RootConfig, world: int) -> Iterator[str]:
    """Data-parallel sizes that would make `world` ranks, each with all else unchanged."""
    parallel = config.parallel
    dp, uneven = divmod(world, parallel.pp * parallel.cp * parallel.tp)
    if uneven or dp < 1:
        return
    if dp % parallel.dp_replicate == 0:
        yield f"parallel.dp_shard={dp // parallel.dp_replicate} (or -1)"
    if parallel.dp_shard == -1:
        yield f"parallel.dp_replicate={nearest(parallel.dp_replicate, divisors(dp))}"
    elif dp % parallel.dp_shard == 0:
        yield f"parallel.dp_replicate={dp // parallel.dp_shard}"


def _fitting_worlds(config: RootConfig, product: int) -> Iterator[str]:
    """Numbers of nodes, or of ranks on the one machine, that `product` would fit."""
    per_node = ranks_per_node(config)
    if config.cluster.kind is ClusterKind.local:
        key, now, step = ("gpus" if config.cluster.gpus_per_node else "ranks") + "_per_node", per_node, product
    else:
        key, now, step = "nodes", config.cluster.nodes, product // math.gcd(product, per_node)
    if config.parallel.dp_shard == -1:
        yield f"cluster.{key}={nearest_multiples(now, step)}"
    elif config.cluster.kind is ClusterKind.local:
        yield f"cluster.{key}={product}"
    elif product % per_node == 0:
        yield f"cluster.{key}={product // per_node}"


def _check_batch(config: RootConfig, shape: Layout) -> Iterator[str]:
    train, pp = config.train, shape.pp
    samples = train.micro_batch_size * shape.dp
    batch, least = train.global_batch_size, samples * pp
    if batch % samples:
        yield (
            f"train.global_batch_size={batch}: must be a multiple of train.micro_batch_size={train.micro_batch_size} x "
            f"{shape.dp} data-parallel ranks = {samples}; nearest: {nearest_multiples(batch, samples, least)}"
        )
    elif batch < least:  # most of the ranks would wait for the others most of the time
        yield (
            f"train.global_batch_size={batch}: gives each data-parallel rank {batch // samples} of its micro batches, and "
            f"parallel.pp={pp} needs at least {pp}; nearest: {least}{_smaller_micro_batch(config, shape)}"
        )


def _smaller_micro_batch(config: RootConfig, shape: Layout) -> str:
    """The largest micro batch that would fill the pipeline with the same global batch, as the end of a sentence."""
    each = config.train.global_batch_size // shape.dp
    fitting = [size for size in divisors(each) if each // size >= shape.pp]
    return f", or train.micro_batch_size={fitting[-1]}" if fitting else ""


def _check_fp8(config: RootConfig) -> Iterator[str]:
    model = config.model
    if not config.cluster.gpus_per_node:
        yield "train.precision=fp8: cluster.gpus_per_node=0 trains on CPU, which has no FP8; set train.precision=bf16"
    if effective_tp(config) > 1:
        yield (
            f"train.precision=fp8: not supported with parallel.tp={config.parallel.tp}; set parallel.tp=1 or "
            "train.precision=bf16"
        )
    for key in ("attention_bias", "mlp_bias"):
        if getattr(model, key):
            yield f"train.precision=fp8: does not add biases, but model.{key}=true; set train.precision=bf16"
    if model.hidden_act not in ("silu", "swish"):
        yield f"train.precision=fp8: computes silu, but model.hidden_act={model.hidden_act}; set train.precision=bf16"
    if model.num_attention_heads < 1:
        return  # said elsewhere
    queries, keys = attention_widths(model)
    sides = {
        "model.hidden_size": model.hidden_size,
        "model.intermediate_size": model.intermediate_size,
        "model.num_attention_heads x head_dim": queries,
        "model.num_key_value_heads x head_dim": keys,
        "train.micro_batch_size x data.seq_len / parallel.cp": (
            config.train.micro_batch_size * config.data.seq_len // max(1, config.parallel.cp)
        ),
    }
    for name, size in sides.items():
        if size % FP8_MULTIPLE:
            yield (
                f"{name}={size}: train.precision=fp8 needs a multiple of {FP8_MULTIPLE}; nearest: "
                f"{nearest_multiples(size, FP8_MULTIPLE)}, or set train.precision=bf16"
            )
