"""Makes the transformers model that a config describes, without memory for its weights."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from harness.config.schema import ModelConfig
from harness.model.family import MODEL_TYPES, head_dim


def transformers_config(model: ModelConfig) -> PretrainedConfig:
    """The config object of `model.model_type`. Raises ValueError for a type or a combination that is not supported."""
    if model.model_type not in MODEL_TYPES:
        raise ValueError(f"model.model_type={model.model_type}: choose one of {', '.join(MODEL_TYPES)}")
    extra: dict[str, Any] = {"mlp_bias": False} if model.model_type in ("smollm3", "llama") else {}
    if model.model_type == "mistral":
        extra["sliding_window"] = None  # attention reaches back to the start of the document, as in Mistral since v0.2
    if model.model_type == "smollm3":
        every = model.no_rope_layer_interval
        # transformers' meaning: 1 = the layer has rotary positions, 0 = it has none
        extra["no_rope_layers"] = [int(not every or (i + 1) % every != 0) for i in range(model.num_hidden_layers)]
        extra["no_rope_layer_interval"] = every
    elif model.no_rope_layer_interval:
        raise ValueError(
            f"model.no_rope_layer_interval={model.no_rope_layer_interval}: only smollm3 has layers without rotary "
            f"positions; set 0 for {model.model_type}"
        )
    return AutoConfig.for_model(
        model.model_type,
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.intermediate_size,
        num_hidden_layers=model.num_hidden_layers,
        num_attention_heads=model.num_attention_heads,
        num_key_value_heads=model.num_key_value_heads,
        head_dim=head_dim(model),
        max_position_embeddings=model.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": model.rope_theta},
        rms_norm_eps=model.rms_norm_eps,
        initializer_range=model.initializer_range,
        tie_word_embeddings=model.tie_word_embeddings,
        attention_bias=False,
        use_cache=False,
        pad_token_id=None,  # a padding token would get an embedding that never trains
        bos_token_id=None,
        eos_token_id=None,
        **extra,
    )


def build_on_meta(model: ModelConfig, attention: str) -> PreTrainedModel:
    """The model in fp32 on the meta device, attending through transformers' `attention` implementation."""
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(
            transformers_config(model), dtype=torch.float32, attn_implementation=attention
        )
    built.train()
    return built
