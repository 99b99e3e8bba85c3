import subprocess
import sys

import pytest

from harness.config.schema import ModelConfig
from harness.model.build import build_on_meta, transformers_config
from harness.model.family import (
    MODEL_TYPES,
    NO_TENSOR_PARALLEL,
    flops_per_token,
    head_dim,
    parameters,
    tensor_parallel_divides,
)
from tests.tiny import tiny_model

SMOLLM3_3B = ModelConfig(
    model_type="smollm3",
    hidden_size=2048,
    intermediate_size=11008,
    num_hidden_layers=36,
    num_attention_heads=16,
    num_key_value_heads=4,
    vocab_size=128256,
    no_rope_layer_interval=4,
)
SHAPES = [
    {},
    {"tie_word_embeddings": False},
    {"head_dim": 24, "num_hidden_layers": 3},
    {"hidden_size": 48, "num_key_value_heads": 4, "intermediate_size": 100, "vocab_size": 1000},
    {"num_key_value_heads": 1, "num_hidden_layers": 1, "head_dim": 8, "tie_word_embeddings": False},
]


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_equal_those_of_transformers(model_type: str, shape: dict) -> None:
    interval = 4 if model_type == "smollm3" else 0
    model = tiny_model(model_type=model_type, no_rope_layer_interval=interval, **shape)
    built = build_on_meta(model, "sdpa")
    count = parameters(model)
    assert count.total == sum(p.numel() for p in built.parameters())
    assert count.non_embedding == sum(
        p.numel() for name, p in built.named_parameters() if "embed_tokens" not in name and "lm_head" not in name
    )
    layer = list(built.model.layers[0].parameters())
    assert count.layer == sum(p.numel() for p in layer)
    assert count.layer_matrices == sum(p.numel() for p in layer if p.ndim == 2)
    assert head_dim(model) == built.model.layers[0].self_attn.head_dim


def test_smollm3_3b_has_its_published_size() -> None:
    assert parameters(SMOLLM3_3B).total == 3_075_098_624
    assert sum(p.numel() for p in build_on_meta(SMOLLM3_3B, "sdpa").parameters()) == 3_075_098_624


def test_flops_follow_the_named_formula() -> None:
    expected = 6 * 3_075_098_624 + 12 * 36 * 2048 * 4096
    assert flops_per_token(SMOLLM3_3B, 4096) == expected
    # an untied input embedding is looked up, not multiplied with
    tied, untied = tiny_model(), tiny_model(tie_word_embeddings=False)
    assert flops_per_token(tied, 64) == flops_per_token(untied, 64)


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_plans_are_those_of_transformers(model_type: str) -> None:
    plan = transformers_config(tiny_model(model_type=model_type, no_rope_layer_interval=0)).base_model_tp_plan or {}
    projections = {name: style for name, style in plan.items() if name.endswith("_proj")}
    usable = set(projections.values()) == {"colwise", "rowwise"}
    assert usable == (model_type not in NO_TENSOR_PARALLEL)


def test_what_tensor_parallel_divides() -> None:
    assert tensor_parallel_divides(SMOLLM3_3B) == {
        "model.num_key_value_heads": 4,
        "model.num_attention_heads": 16,
        "model.intermediate_size": 11008,
    }


def test_unknown_model_type_is_refused() -> None:
    for use in (parameters, transformers_config):
        with pytest.raises(ValueError, match="model_type=gpt9: choose one of smollm3, llama, qwen3, mistral, olmo2"):
            use(tiny_model(model_type="gpt9"))


def test_family_and_schedule_do_not_import_torch() -> None:
    code = (
        "import sys, harness.model.family, harness.optim.schedule, harness.checkpoint.folders, "
        "harness.checkpoint.manifest; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
