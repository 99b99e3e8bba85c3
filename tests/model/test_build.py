import pytest
import torch

from harness.model.build import build_on_meta, transformers_config
from harness.model.family import MODEL_TYPES
from tests.tiny import tiny_model


@pytest.mark.parametrize(("interval", "expected"), [(4, [1, 1, 1, 0]), (2, [1, 0, 1, 0]), (0, [1, 1, 1, 1])])
def test_interval_says_which_layers_have_no_rotary_positions(interval: int, expected: list[int]) -> None:
    config = transformers_config(tiny_model(no_rope_layer_interval=interval))
    assert config.no_rope_layers == expected
    built = build_on_meta(tiny_model(no_rope_layer_interval=interval), "sdpa")
    assert [layer.self_attn.use_rope for layer in built.model.layers] == expected


def test_other_families_have_rotary_positions_everywhere() -> None:
    with pytest.raises(ValueError, match=r"model\.no_rope_layer_interval=4: only smollm3"):
        transformers_config(tiny_model(model_type="llama"))


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_field_reaches_the_model(model_type: str) -> None:
    interval = 4 if model_type == "smollm3" else 0
    model = tiny_model(
        model_type=model_type, head_dim=24, rope_theta=5e5, rms_norm_eps=1e-5, no_rope_layer_interval=interval
    )
    built = build_on_meta(model, "sdpa")
    assert built.model.layers[0].self_attn.head_dim == 24
    assert built.model.norm.variance_epsilon == 1e-5
    assert built.config.rope_parameters["rope_theta"] == 5e5
    assert built.config.max_position_embeddings == 256
    assert built.model.embed_tokens.padding_idx is None
    assert built.lm_head.weight is built.model.embed_tokens.weight
    assert {p.device.type for p in built.parameters()} == {"meta"}
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    assert not [name for name, _ in built.named_parameters() if name.endswith("bias")]


def test_no_family_looks_back_through_a_window_only() -> None:
    # the attention that is registered here sees whole documents
    for model_type in MODEL_TYPES:
        config = transformers_config(tiny_model(model_type=model_type, no_rope_layer_interval=0))
        assert getattr(config, "sliding_window", None) is None
