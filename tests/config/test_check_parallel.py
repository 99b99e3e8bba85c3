"""Layouts: each possible one passes, each impossible one is refused with values that are possible."""

import copy
import itertools
import math
import re

import pytest

from harness.config.check import check
from harness.config.check_parallel import check_parallel
from harness.config.layout import layout
from harness.config.schema import PipelineSchedule, RootConfig
from tests.config.configs import config

NODE = ["parallel.dp_shard=-1", "train.micro_batch_size=1", "train.global_batch_size=64"]
"""One node of 8 GPUs; the model has 36 layers, 16 heads, 4 key/value heads."""


def found(*overrides: str) -> list[str]:
    return list(check_parallel(config("smol3b_1node", *NODE, *overrides)))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("parallel.cp=0", "parallel.cp=0: must be at least 1"),
        ("parallel.dp_shard=0", "parallel.dp_shard=0: must be at least 1; -1 takes all ranks that are left"),
        ("parallel.tp=8", "parallel.tp=8: must divide model.num_key_value_heads (4); nearest possible: 4"),
        ("parallel.tp=3", "ranks of a node (8); nearest possible: 2 or 4"),
        ("parallel.tp=2 model.intermediate_size=11009", "model.intermediate_size (11009); nearest possible: 1"),
        ("parallel.tp=4 data.seq_len=4094", "must divide data.seq_len (4094); nearest possible: 2"),
        ("parallel.tp=4 parallel.cp=2 data.seq_len=4092", "data.seq_len / parallel.cp=2 (2046); nearest possible: 2"),
        ("parallel.cp=4 data.seq_len=4092", "nearest possible: parallel.cp=2, or data.seq_len=4088 or 4096"),
        ("parallel.pp=8", "8 stages, which do not divide model.num_hidden_layers=36; nearest possible: parallel.pp=4"),
        (
            "parallel.pp=4 parallel.pp_schedule=interleaved",
            "8 stages with parallel.pp_stages_per_rank=2, which do not divide model.num_hidden_layers=36; nearest "
            "possible: parallel.pp=2, or parallel.pp_stages_per_rank=3",
        ),
        (
            "parallel.pp=2 parallel.pp_schedule=interleaved parallel.pp_stages_per_rank=1",
            "interleaved needs at least 2",
        ),
        ("model.num_hidden_layers=2 parallel.pp=4", "which do not divide model.num_hidden_layers=2"),
        (
            "parallel.dp_shard=2 parallel.tp=2",
            "nearest possible: parallel.dp_shard=4 (or -1), or parallel.dp_replicate=2",
        ),
        ("parallel.cp=3 data.seq_len=3072", "8 ranks of 1 node x 8; nearest possible: cluster.nodes=3"),
        ("parallel.dp_replicate=3", "nearest possible: parallel.dp_replicate=2 or 4, or cluster.nodes=3"),
        ("train.global_batch_size=63", "1 x 8 data-parallel ranks = 8; nearest: 56 or 64"),
        (
            "parallel.pp=4 train.micro_batch_size=16",
            "gives each data-parallel rank 2 of its micro batches, and parallel.pp=4 needs at least 4; nearest: 128, or "
            "train.micro_batch_size=8",
        ),
        ("parallel.pp=4 train.global_batch_size=6", "parallel.pp=4 needs at least 4; nearest: 8"),
        ("parallel.pp=4 train.global_batch_size=9", "data-parallel ranks = 2; nearest: 8 or 10"),
        ("train.precision=fp8 parallel.tp=2", "not supported with parallel.tp=2; set parallel.tp=1"),
        ("train.precision=fp8 cluster.gpus_per_node=0", "cluster.gpus_per_node=0 trains on CPU, which has no FP8"),
        ("train.precision=fp8 model.hidden_size=2056", "needs a multiple of 16; nearest: 2048 or 2064"),
        ("train.precision=fp8 data.seq_len=4084", "parallel.cp=4084: train.precision=fp8 needs a multiple of 16"),
    ],
)
def test_each_refusal_names_what_is_possible(overrides: str, says: str) -> None:
    problems = found(*overrides.split())
    assert any(says in problem for problem in problems), problems


@pytest.mark.parametrize(
    "overrides",
    [
        "parallel.tp=3",
        "parallel.cp=4 data.seq_len=4092",
        "parallel.pp=8",
        "parallel.pp=4 parallel.pp_schedule=interleaved",
        "parallel.dp_shard=2 parallel.tp=2",
        "parallel.dp_replicate=3",
        "parallel.cp=3 data.seq_len=3072",
        "cluster.nodes=2 parallel.dp_shard=8 parallel.pp=3",
        "cluster.kind=local cluster.gpus_per_node=0 cluster.ranks_per_node=6 parallel.tp=2 parallel.pp=2",
        "cluster.kind=local cluster.gpus_per_node=6 parallel.dp_shard=4",
        "train.global_batch_size=63",
        "parallel.pp=4 train.micro_batch_size=16",
        "parallel.pp=4 train.global_batch_size=6",
    ],
)
def test_what_a_refusal_names_is_possible_indeed(overrides: str) -> None:
    problem = found(*overrides.split())[0]
    head = problem.partition("=")[0].partition(":")[0]
    offers = problem.partition("nearest")[2].replace("nearest possible: ", "").replace("(or -1)", "")
    tried = 0
    for key, values in re.findall(r"([a-z_.]*)[= ](\d+(?: or \d+)*)", offers):
        for value in values.split(" or "):
            override = f"{key or head}={value}"
            again = [text for text in found(*overrides.split(), override) if text.startswith(head)]
            assert again == [], override
            tried += 1
    assert tried


ON_ONE_NODE = config("smol3b_1node", *NODE)


def with_layout(nodes: int, per_node: int, sizes: tuple[int, ...]) -> RootConfig:
    made = copy.deepcopy(ON_ONE_NODE)
    made.cluster.nodes, made.cluster.gpus_per_node = nodes, per_node
    parallel = made.parallel
    parallel.pp, parallel.dp_replicate, parallel.dp_shard, parallel.cp, parallel.tp = sizes
    return made


@pytest.mark.parametrize(("nodes", "per_node"), [(1, 8), (2, 4), (2, 8), (8, 1)])
@pytest.mark.parametrize("schedule", list(PipelineSchedule))
def test_every_product_of_the_world_is_a_layout(nodes: int, per_node: int, schedule: PipelineSchedule) -> None:
    for sizes in itertools.product((1, 2), repeat=5):
        asked = with_layout(nodes, per_node, sizes)
        asked.parallel.pp_schedule = schedule
        problems = list(check_parallel(asked))
        fits = math.prod(sizes) == nodes * per_node
        tp_inside_a_node = per_node % sizes[-1] == 0
        assert any("does not make the" in text for text in problems) == (not fits)
        assert any(text.startswith("parallel.tp=2: must divide ranks of a node (1)") for text in problems) == (
            not tp_inside_a_node
        )
        assert len(problems) == (not fits) + (not tp_inside_a_node), problems
        if not problems:
            shape = layout(asked)
            assert tuple(shape.parallel.values()) == sizes and math.prod(sizes) == shape.world_size
            assert shape.pp_stages == sizes[0] * (2 if sizes[0] > 1 and schedule is PipelineSchedule.interleaved else 1)
            assert shape.accumulation_steps * shape.dp * asked.train.micro_batch_size == 64


def test_all_that_is_left_is_sharded() -> None:
    for sizes in itertools.product((1, 2), (1, 2), (-1,), (1, 2), (1, 2)):
        shape = layout(with_layout(2, 8, sizes))
        assert math.prod(shape.parallel.values()) == shape.world_size == 16
        assert shape.shards == shape.dp_shard * shape.cp


@pytest.mark.parametrize("dp_shard", [-1, 2])
def test_a_model_without_a_tensor_parallel_plan_is_sharded_instead(dp_shard: int) -> None:
    asked = config("smol3b_1node", *NODE, "model.model_type=olmo2", "model.no_rope_layer_interval=0", "parallel.tp=4")
    asked.parallel.dp_shard = dp_shard
    assert check(asked) == []
    shape = layout(asked)
    assert (shape.tp, shape.dp_shard, shape.accumulation_steps) == (1, 8, 8)
    assert "olmo2 has no tensor-parallel plan" in shape.remarks[0] and "dp_shard=8" in shape.remarks[0]
    asked.parallel.tp = 1
    assert layout(asked).remarks == ()


def test_fp8_goes_with_every_other_dimension() -> None:
    assert found("train.precision=fp8", "parallel.pp=2", "parallel.cp=2") == []
