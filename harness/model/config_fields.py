"""Every field of the families' transformers configs: which the harness takes over, which change nothing, and which must have
the value with which it computes. A test holds this table against transformers' classes, so that no new field passes unseen.
"""

from collections.abc import Mapping

from harness.model.family import ATTENTION_BIAS, LAYER_TYPES, MLP_BIAS, NOPE_LAYERS, SLIDING_WINDOW

CHANGES_NOTHING = frozenset(
    {
        "transformers_version", "architectures", "output_hidden_states", "return_dict", "dtype", "id2label", "label2id",
        "problem_type", "use_cache", "bos_token_id", "eos_token_id",
        "pad_token_id",       # takes the gradient from one row of the embedding; the row itself is as it is stored
        "pretraining_tp",     # how products were divided once, not what they come to
        "max_window_layers",  # only says what layer_types is if that is not given
    }
)  # fmt: skip
"""Fields of config classes that do not change what the model computes."""

MUST_BE: Mapping[str, tuple[object, ...]] = {
    "attention_dropout": (0, None),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
}
"""Fields of config classes that the harness does not take over -> the values with which they change nothing."""

TAKEN = frozenset(
    {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings", "rope_parameters",
    }
)  # fmt: skip
"""Fields of all families' config classes that a key of `model` stands for."""

OWN = {
    "head_dim": ("llama", "qwen3", "mistral"),
    "attention_bias": ATTENTION_BIAS,
    "mlp_bias": MLP_BIAS,
    "sliding_window": SLIDING_WINDOW,
    "use_sliding_window": LAYER_TYPES,
    "layer_types": LAYER_TYPES,
    "no_rope_layers": NOPE_LAYERS,
    "no_rope_layer_interval": NOPE_LAYERS,
}
"""Fields that keys of `model` stand for -> the families whose config class has them."""

NOT_IN_CLASS: Mapping[str, tuple[object, ...]] = {
    "is_causal": (True, None),
    "use_bidirectional_attention": (False, None),
    "attention_chunk_size": (None,),
    "layer_types": (None,),
    "per_layer_config": (None, {}),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "compression_config": (None, {}),
    "auto_map": (None, {}),
}
"""Keys that may stand in a config.json although the class of the family has no such field, and that change what transformers
computes, or what is in the files -> the values with which they do not."""

KNOWN_NOTES = frozenset(
    {
        "_name_or_path", "torch_dtype", "model_type", "head_dim", "rope_theta", "rope_scaling", "original_max_position_embeddings",
        "partial_rotary_factor", "_attn_implementation_autoset", "attn_implementation", "output_attentions", "num_labels",
        "unsloth_version", "unsloth_fixed", "transformers.js_config",
    }
)  # fmt: skip
"""Keys outside of the classes that are read above, or by transformers into fields, or that are only notes."""


def taken(family: str) -> frozenset[str]:
    """Fields of the family's config class that keys of `model` stand for."""
    return TAKEN | {field for field, families in OWN.items() if family in families}
