"""The small copy must keep what layouts can get wrong, and fit them all."""

from dataclasses import replace
from typing import Any

import pytest

from harness.config.check import check
from harness.config.compose import compose
from harness.config.layout import layout
from harness.config.schema import ParallelConfig, PipelineSchedule, Precision, RootConfig
from harness.model.family import parameters
from harness.verify.errors import VerifyError
from harness.verify.layouts import ALONE, STANDARD, Case, impossible, layout_for, own_layout, small_layout
from harness.verify.shrink import placed, shrink

INIT_FROM = "model.init_from=somewhere"
RUNS = {
    "tiny": [],
    "smol3b": [],
    "ablation_1b": [],
    "long_context_32k": [INIT_FROM],
    "smol3b_1node": ["parallel.pp=2", "parallel.pp_schedule=interleaved", "parallel.dp_shard=4"],
}


def composed(name: str, *overrides: str) -> RootConfig:
    return compose([f"+exp={name}", *RUNS[name], *overrides])


def cases_of(config: RootConfig) -> dict[str, list[Case]]:
    return {"own": [small_layout(config)], "standard": list(STANDARD), "full": [own_layout(config)]}


@pytest.mark.parametrize("which", ["own", "standard", "full"])
@pytest.mark.parametrize("name", RUNS)
def test_the_small_run_fits_its_layouts(name: str, which: str) -> None:
    config = composed(name)
    cases = cases_of(config)[which]
    small = shrink(config, [ALONE, *cases], Precision.fp32, on_gpu=False)
    for case in [ALONE, *cases]:
        assert check(placed(small, case)) == [], case.name
    assert small.model.init_from is None and small.data.seq_len == small.model.max_position_embeddings
    if which != "full":
        assert parameters(small.model).total < 1e6 and small.data.seq_len == 64
        assert max(case.ranks for case in cases) <= 8


def test_what_layouts_can_get_wrong_is_kept() -> None:
    config = composed("smol3b", "train.z_loss=1e-4", "optim=muon", "train.activation_checkpoint=full")
    case = small_layout(config)
    small = placed(shrink(config, [ALONE, case], Precision.fp32, on_gpu=False), case)
    model = small.model
    assert (case.name, case.ranks) == ("dp_replicate 2 x tp 2", 4)
    assert (model.model_type, model.tie_word_embeddings, model.no_rope_layer_interval) == ("smollm3", True, 4)
    assert model.num_attention_heads == 4 * model.num_key_value_heads and model.num_key_value_heads == 4
    assert model.num_hidden_layers == 4 and model.rope_theta == 50000.0
    assert (small.optim, small.train.z_loss) == (config.optim, 1e-4)
    assert small.train.activation_checkpoint == config.train.activation_checkpoint
    assert small.data.document_mask and small.train.micro_batch_size == 2
    assert config.model.hidden_size == 2048, "the config itself stays as it is"


def test_micro_batches_fill_pipelines_and_are_accumulated_where_the_run_does_it() -> None:
    def steps(*overrides: str) -> int:
        config = composed("smol3b_1node", *overrides)
        case = small_layout(config)
        return layout(placed(shrink(config, [ALONE, case], Precision.fp32, on_gpu=False), case)).accumulation_steps

    assert steps() == 4
    assert steps("train.global_batch_size=24") == 2
    flat = ["parallel.pp=1", "parallel.dp_shard=8"]
    assert steps(*flat) == 2
    assert steps(*flat, "train.global_batch_size=24") == 1


def test_odd_sizes_stay_odd() -> None:
    config = composed("tiny", "model.vocab_size=4099", "model.num_attention_heads=9", "model.num_key_value_heads=3",
                      "model.hidden_size=144", "parallel.tp=3", "cluster.ranks_per_node=6", "data.seq_len=252",
                      "train.global_batch_size=24")  # fmt: skip
    assert check(config) == []
    case = small_layout(config)
    assert case.name == "dp_shard 2 x tp 3"
    small = shrink(config, [ALONE, case], Precision.fp32, on_gpu=False)
    assert check(placed(small, case)) == []
    assert small.model.vocab_size % 3 and small.model.num_key_value_heads == 3 and small.data.seq_len == 66


def test_heads_keep_the_width_that_gpu_kernels_go_by() -> None:
    config = composed("smol3b")
    assert shrink(config, [ALONE], Precision.bf16, on_gpu=True).model.head_dim == 128
    assert shrink(config, [ALONE], Precision.bf16, on_gpu=False).model.head_dim == 16


def test_the_layout_goes_by_the_ranks_that_were_started() -> None:
    config = composed("smol3b")
    assert layout_for(config, 384) == own_layout(config) and own_layout(config).name == "dp_replicate 192 x tp 2"
    assert layout_for(config, 16).name == "dp_replicate 2 x dp_shard 4 x tp 2"
    with pytest.raises(VerifyError, match=r"6 ranks were started.*needs a multiple of 4.*own layout start 384"):
        layout_for(config, 6)


def test_interleaved_pipelines_say_so() -> None:
    case = small_layout(composed("smol3b_1node"))
    assert case.name == "pp 2 interleaved x dp_shard 2"
    assert case.parallel == replace(
        ParallelConfig(), pp=2, dp_shard=2, pp_schedule=PipelineSchedule.interleaved, pp_stages_per_rank=2
    )


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        (["model.num_key_value_heads=1"], "parallel.tp=2 does not divide model.num_key_value_heads=1"),
        (["model.model_type=olmo2", "model.no_rope_layer_interval=0"], "olmo2 has no tensor-parallel plan"),
    ],
)
def test_layouts_that_the_model_can_not_have(changes: list[str], why: str) -> None:
    config: Any = composed("tiny", *changes)
    for case in STANDARD:
        found = impossible(config, case)
        assert (found is None) == (case.parallel.tp == 1)
        assert found is None or why in found


def test_scaled_positions_and_kinds_of_layers_are_kept_in_small() -> None:
    layers = 36
    config = composed("smol3b")
    model = config.model
    model.rope_scaling = {
        "rope_type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64, "original_max_position_embeddings": 2048,
    }  # fmt: skip
    model.no_rope_layers, model.no_rope_layer_interval = [layer % 3 % 2 for layer in range(layers)], 0
    model.layer_types, model.sliding_window = ["sliding_attention", "full_attention"] * (layers // 2), 512
    case = small_layout(config)
    small = placed(shrink(config, [ALONE, case], Precision.fp32, on_gpu=False), case)
    assert check(small) == []
    assert small.model.rope_scaling["long_factor"] == [2.0] * 8
    assert small.model.rope_scaling["original_max_position_embeddings"] < small.data.seq_len, "beyond it, as the run is"
    assert small.model.sliding_window is not None and small.model.sliding_window < small.data.seq_len
    assert set(small.model.layer_types or ()) == {"sliding_attention", "full_attention"}
    assert set(small.model.no_rope_layers or ()) == {0, 1}
    model.rope_scaling["original_max_position_embeddings"] = model.sliding_window = 1_000_000
    within = shrink(config, [ALONE, case], Precision.fp32, on_gpu=False).model
    assert within.rope_scaling["original_max_position_embeddings"] == within.sliding_window == small.data.seq_len
