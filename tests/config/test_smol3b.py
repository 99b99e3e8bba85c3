"""The published numbers of SmolLM3's pretraining, held against the composed config."""

import pytest

from harness.config.layout import layout
from harness.config.schema import RootConfig
from harness.model.family import parameters
from harness.plan import make_plan
from tests.config.configs import config as composed


@pytest.fixture(scope="module")
def config() -> RootConfig:
    return composed("smol3b")


def test_cluster_and_layout(config: RootConfig) -> None:
    shape = layout(config)
    assert (config.cluster.nodes, config.cluster.gpus_per_node) == (48, 8)
    assert (shape.dp, shape.tp, config.parallel.pp, config.parallel.cp) == (192, 2, 1, 1)
    assert shape.dp_shard == 1, "ZeRO 0: optimizer state is not divided"


def test_batch_and_tokens(config: RootConfig) -> None:
    shape = layout(config)
    assert (config.train.micro_batch_size, shape.accumulation_steps, config.data.seq_len) == (3, 1, 4096)
    assert (config.train.global_batch_size, shape.tokens_per_step) == (576, 2_359_296)
    assert config.train.steps == 4_720_000
    assert config.train.steps * shape.tokens_per_step == pytest.approx(11.14e12, rel=1e-3)


def test_model(config: RootConfig) -> None:
    model = config.model
    shape = (model.num_hidden_layers, model.hidden_size, model.intermediate_size, model.num_attention_heads,
             model.num_key_value_heads, model.head_dim, model.vocab_size)  # fmt: skip
    assert shape == (36, 2048, 11008, 16, 4, 128, 128_256)
    assert (model.rms_norm_eps, model.initializer_range, model.rope_theta) == (1e-6, 0.02, 50_000)
    assert (model.tie_word_embeddings, model.no_rope_layer_interval) == (True, 4)
    assert parameters(model).total == pytest.approx(3.075e9, rel=1e-3)


def test_optimizer_and_schedule(config: RootConfig) -> None:
    optim, schedule = config.optim, config.schedule
    assert (optim.lr, tuple(optim.betas), optim.eps, optim.weight_decay) == (2e-4, (0.9, 0.95), 1e-8, 0.1)
    assert (optim.clip_grad_norm, optim.decay_embeddings) == (1.0, False)
    assert (schedule.name, schedule.warmup_steps, schedule.decay_steps) == ("wsd", 2000, 522_000)
    assert (schedule.decay.value, schedule.final_lr_ratio) == ("linear", 0.0)
    assert config.train.seed == config.data.seed == 6


def test_stages(config: RootConfig) -> None:
    tokens = layout(config).tokens_per_step
    ends = [stage.until_step or 0 for stage in config.data.stages]
    assert ends == [3_450_000, 4_198_000, 4_720_000]
    lengths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    assert [length * tokens / 1e12 for length in lengths] == pytest.approx([8.14, 1.76, 1.23], abs=0.01)
    weights = [[stage.weights[source] for source in ("web", "code", "math")] for stage in config.data.stages]
    assert weights == [[0.85, 0.12, 0.03], [0.75, 0.15, 0.10], [0.63, 0.24, 0.13]]


def test_the_decay_begins_with_stage_three(config: RootConfig) -> None:
    assert config.train.steps - (config.schedule.decay_steps or 0) == config.data.stages[1].until_step


def test_plan(config: RootConfig) -> None:
    plan = make_plan(config)
    assert (plan.gpus, plan.tokens_per_step) == (384, 2_359_296)
    assert plan.expected_tokens_per_second == pytest.approx(384 * 13_800)
    assert plan.hours is not None and plan.hours / 24 == pytest.approx(24.4, abs=0.2), "pure compute, as published"
    assert plan.memory_per_gpu_bytes < 80e9, "fits an H100"
    assert config.checkpoint.every_steps == 2000
    assert config.data.document_mask


def test_ablation_is_45_billion_tokens_at_the_published_batch() -> None:
    plan = make_plan(composed("ablation_1b"))
    assert plan.tokens_total == pytest.approx(45e9, rel=1e-3)
    assert plan.tokens_per_step == pytest.approx(1.57e6, rel=5e-3)


def test_one_node_trains_the_same_model_on_the_same_batch(config: RootConfig) -> None:
    small = composed("smol3b_1node")
    assert (small.model, small.data, small.optim) == (config.model, config.data, config.optim)
    assert layout(small).tokens_per_step == layout(config).tokens_per_step


def test_long_context_stage(config: RootConfig) -> None:
    stage = composed("long_context_32k")
    shape = layout(stage)
    assert (shape.dp, shape.cp, shape.tp, stage.train.steps) == (12, 4, 2, 20_000)
    assert shape.tokens_per_step == layout(config).tokens_per_step
    assert (stage.data.seq_len, stage.model.max_position_embeddings, stage.model.rope_theta) == (32_768, 32_768, 2e6)
    assert (stage.optim.lr, stage.schedule.name, stage.schedule.warmup_steps) == (2e-5, "cosine", 1000)
    assert parameters(stage.model) == parameters(config.model), "the same weights go on"
    assert stage.model.init_from
    assert make_plan(stage).memory_per_gpu_bytes < 80e9, "fits an H100"
