"""A config's model and batch in small, with everything kept that layouts could get wrong. Imports no torch."""

import copy
from collections.abc import Sequence
from math import lcm
from typing import Any, TypeVar

from harness.config.layout import Layout, layout
from harness.config.schema import (
    CheckpointConfig,
    ClusterConfig,
    ClusterKind,
    DataConfig,
    ModelConfig,
    MonitorConfig,
    Precision,
    RootConfig,
    ScheduleConfig,
    SourceConfig,
    StageConfig,
)
from harness.model.family import head_dim, slides
from harness.model.rope_scaling import LISTS
from harness.verify.layouts import Case

T = TypeVar("T")

STEPS = 4
END = 0
"""Token that ends a document."""
_HIDDEN, _INTERMEDIATE, _HEAD_DIM, _SEQ_LEN, _NOPE_INTERVAL = 64, 96, 16, 64, 4
_VOCAB, _ODD_VOCAB = 256, 251


def shrink(
    config: RootConfig, cases: Sequence[Case], precision: Precision, *, on_gpu: bool, compiled: bool = True
) -> RootConfig:
    """A small run whose model and batch fit every layout of `cases`; `placed` gives it one of them.

    Kept: architecture, tied head, layers without rotary positions, the ratio of query to key heads, what divides by what,
    document masks, z-loss, accumulation, optimizer, clipping, kernels and recomputation; with `compiled`, `train.compile` in the
    run's own precision. `data` is left without a path.
    """
    small = copy.deepcopy(config)
    small.cluster = ClusterConfig(kind=ClusterKind.local, gpus_per_node=1 if on_gpu else 0)
    small.checkpoint, small.monitor, small.schedule = CheckpointConfig(keep=None), MonitorConfig(), ScheduleConfig()
    layouts = [layout(placed(small, case)) for case in cases]
    tp = lcm(*(found.tp for found in layouts))
    unit = 2 * lcm(*(found.cp for found in layouts)) * tp
    seq_len = _round_up(_SEQ_LEN, unit)
    small.model = _small_model(
        config.model, tp, lcm(*(found.pp_stages for found in layouts)), seq_len, config.data.seq_len, on_gpu
    )
    small.data = DataConfig(
        seq_len=seq_len,
        seed=config.data.seed,
        sources={"random": SourceConfig()},
        stages=[StageConfig(weights={"random": 1.0})],
        eos_token_id=END,
        document_mask=config.data.document_mask,
        read_threads=1,
    )
    train = small.train
    # fp32 beside the run's own precision is there to show mistakes of the layout, which compiling would only delay
    extra = precision is Precision.fp32 and config.train.precision is not Precision.fp32
    train.compile = config.train.compile and compiled and not extra
    train.steps, train.precision, train.skip, train.eval_every, train.stats_every = STEPS, precision, [], 0, 0
    train.micro_batch_size = min(config.train.micro_batch_size, 2)
    train.global_batch_size = train.micro_batch_size * _micro_batches(layout(config), layouts)
    return small


def placed(small: RootConfig, case: Case) -> RootConfig:
    """The small run in the layout of `case`."""
    run = copy.deepcopy(small)
    run.parallel = copy.deepcopy(case.parallel)
    run.cluster.ranks_per_node = case.ranks
    run.cluster.gpus_per_node = case.ranks if small.cluster.gpus_per_node else 0
    return run


def _small_model(model: ModelConfig, tp: int, stages: int, seq_len: int, length: int, on_gpu: bool) -> ModelConfig:
    """`length`: of the config's own sequences."""
    small = copy.deepcopy(model)
    interval = small.no_rope_layer_interval = min(model.no_rope_layer_interval, _NOPE_INTERVAL)
    each, rest = divmod(model.num_key_value_heads, tp)
    small.num_key_value_heads = tp * min(2, each) if not rest else 1
    small.num_attention_heads = small.num_key_value_heads * (model.num_attention_heads // model.num_key_value_heads)
    small.hidden_size, small.intermediate_size = _HIDDEN, _round_up(_INTERMEDIATE, tp)
    small.head_dim = head_dim(model) if on_gpu else min(head_dim(model), _HEAD_DIM)  # kernels go by it
    least = 2 if model.no_rope_layers is None and model.layer_types is None else 4
    small.num_hidden_layers = _round_up(max(interval, least), stages)
    small.vocab_size = _VOCAB if model.vocab_size % tp == 0 else _ODD_VOCAB
    small.max_position_embeddings = seq_len
    small.init_from, small.init_from_changes = None, []
    small.no_rope_layers = _spread(model.no_rope_layers, small.num_hidden_layers)
    small.layer_types = _spread(model.layer_types, small.num_hidden_layers)
    if model.sliding_window is not None:
        small.sliding_window = seq_len // 4 if slides(model, length) else seq_len
    if model.rope_scaling:
        small.rope_scaling = _small_scaling(model.rope_scaling, head_dim(small), seq_len, length)
    return small


def _spread(values: list[T] | None, count: int) -> list[T] | None:
    """`count` of `values`, spread from the first to the last, with each kind of them among those."""
    if values is None:
        return None
    found = [values[round(number * (len(values) - 1) / max(1, count - 1))] for number in range(count)]
    for kind in dict.fromkeys(values):
        if kind not in found:
            found[next(number for number, value in enumerate(found) if found.count(value) > 1)] = kind
    return found


def _small_scaling(scaling: dict[str, Any], head: int, seq_len: int, length: int) -> dict[str, Any]:
    """For heads of `head` numbers and sequences of `seq_len` tokens instead of `length`, which stay within what the model
    was first trained on, or go beyond it."""
    small = {key: value[: head // 2] if key in LISTS else value for key, value in scaling.items()}
    if (first := scaling.get("original_max_position_embeddings")) is not None:
        small["original_max_position_embeddings"] = seq_len // 2 if first < length else seq_len
    return small


def _micro_batches(own: Layout, layouts: Sequence[Layout]) -> int:
    """Micro batches of one step over all data-parallel ranks: as many for each pipeline as fill it, twice that where the
    config's own run accumulates more."""
    dp = lcm(*(found.dp for found in layouts))
    rounds, accumulates = 1, own.accumulation_steps > own.pp
    while any(rounds * dp // f.dp % f.pp or rounds * dp // f.dp < f.pp * (1 + accumulates) for f in layouts):
        rounds += 1
    return rounds * dp


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
