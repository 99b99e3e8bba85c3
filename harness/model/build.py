"""Makes the transformers model that a config describes, without memory for its weights."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from harness.config.schema import ModelConfig
from harness.model.family import (
    ATTENTION_BIAS,
    FULL,
    LAYER_TYPES,
    MLP_BIAS,
    MODEL_TYPES,
    NOPE_LAYERS,
    SLIDING_WINDOW,
    head_dim,
    layers_without_rope,
    shape_problems,
)


def transformers_config(model: ModelConfig) -> PretrainedConfig:
    """The config object of `model.model_type`. Raises ValueError for a type or a combination that is not supported."""
    if model.model_type not in MODEL_TYPES:
        raise ValueError(f"model.model_type={model.model_type}: choose one of {', '.join(MODEL_TYPES)}")
    if problems := list(shape_problems(model)):
        raise ValueError("\n".join(problems))
    return AutoConfig.for_model(
        model.model_type,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=head_dim(model),
        hidden_act=model.hidden_act,
        max_position_embeddings=model.max_position_embeddings,
        rope_parameters={"rope_type": "default", **model.rope_scaling, "rope_theta": model.rope_theta},
        rms_norm_eps=model.rms_norm_eps,
        initializer_range=model.initializer_range,
        tie_word_embeddings=model.tie_word_embeddings,
        attention_dropout=0.0,
        use_cache=False,
        pad_token_id=None,  # a padding token would get an embedding that never trains
        bos_token_id=None,
        eos_token_id=None,
        **_own_fields(model),
    )


def build_on_meta(model: ModelConfig, attention: str) -> PreTrainedModel:
    """The model in fp32 on the meta device, attending through transformers' `attention` implementation."""
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            transformers_config(model), dtype=torch.float32, attn_implementation=attention
        )
    built.train()
    return built


def _own_fields(model: ModelConfig) -> dict[str, Any]:
    """Fields that some families have and others do not."""
    family, layers = model.model_type, model.num_hidden_layers
    fields: dict[str, Any] = {}
    if family in ATTENTION_BIAS:
        fields["attention_bias"] = model.attention_bias
    if family in MLP_BIAS:
        fields["mlp_bias"] = model.mlp_bias
    if family in SLIDING_WINDOW:
        fields["sliding_window"] = model.sliding_window
    if family in LAYER_TYPES:
        fields["use_sliding_window"] = model.sliding_window is not None
        fields["layer_types"] = list(model.layer_types or [FULL] * layers)
    if family in NOPE_LAYERS:
        without = layers_without_rope(model)
        # transformers' meaning: 1 = the layer has rotary positions, 0 = it has none
        fields["no_rope_layers"] = [int(layer not in without) for layer in range(layers)]
        fields["no_rope_layer_interval"] = model.no_rope_layer_interval
    return fields
