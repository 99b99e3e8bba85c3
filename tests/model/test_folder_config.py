"""Every field of the families' configs: the harness computes what plain transformers computes, or names the field.

A field that a new release of transformers adds fails the first test, until it stands in the table.
"""

import dataclasses
import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from harness.config.schema import ModelConfig
from harness.model.compare import compare
from harness.model.config_fields import CHANGES_NOTHING, KNOWN_NOTES, MUST_BE, NOT_IN_CLASS, taken
from harness.model.family import ACTIVATIONS, FULL, MODEL_TYPES, SLIDING
from harness.model.folder_config import FolderConfigError, read_folder_config
from harness.model.load import load_weights
from harness.model.rope_scaling import KINDS

SEQ_LEN = 64
BASE: dict[str, Any] = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.3, "tie_word_embeddings": False,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
MIXED = [FULL, SLIDING, FULL, SLIDING]
HALF = 4
"""Pairs of numbers in a head of the base."""

ROPE: dict[str, dict[str, Any]] = {
    "theta": {"rope_type": "default", "rope_theta": 500.0},
    "linear": {"rope_type": "linear", "factor": 3.0},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-everything": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.3, "beta_fast": 16.0,
        "beta_slow": 2.0, "truncate": False,
    },
    "yarn-mscale": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 0.7, "mscale_all_dim": 0.4,
    },
    "longrope-long": {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 32, "factor": 4.0,
    },
    "longrope-short": {
        "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 64, "attention_factor": 1.2,
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "proportional": {"rope_type": "proportional", "factor": 2.0, "partial_rotary_factor": 0.5},
}  # fmt: skip

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "vocab_size": [{"vocab_size": 80}],
    "hidden_size": [{"hidden_size": 48}],
    "intermediate_size": [{"intermediate_size": 40}],
    "num_hidden_layers": [{"num_hidden_layers": 3}],
    "num_attention_heads": [{"num_attention_heads": 8}],
    "num_key_value_heads": [{"num_key_value_heads": 1}, {"num_key_value_heads": 4}],
    "hidden_act": [{"hidden_act": "gelu_pytorch_tanh"}],
    "max_position_embeddings": [{"max_position_embeddings": 64}],
    "initializer_range": [{"initializer_range": 0.2}],
    "rms_norm_eps": [{"rms_norm_eps": 1e-2}],
    "tie_word_embeddings": [{"tie_word_embeddings": True}],
    "rope_parameters": [{"rope_parameters": {"rope_theta": 10000.0, **rope}} for rope in ROPE.values()],
    "head_dim": [{"head_dim": 12}],
    "attention_bias": [{"attention_bias": True}],
    "mlp_bias": [{"mlp_bias": True}],
    "sliding_window": [{"sliding_window": 7}, {"sliding_window": 64}, {"sliding_window": None}],
    "use_sliding_window": [{"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 2}],
    "layer_types": [{"use_sliding_window": True, "sliding_window": 5, "layer_types": MIXED}],
    "no_rope_layers": [{"no_rope_layers": [1, 0, 0, 1]}, {"no_rope_layers": [1, 0, 1, 0, 1, 0]}],
    "no_rope_layer_interval": [{"no_rope_layer_interval": 2}],
}
"""Field -> values in which it matters, with the fields that it needs for that."""


def saved(family: str, folder: Path, **changes: Any) -> Any:
    """A model with random weights and biases, saved by transformers."""
    base = {**BASE, "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0}}
    if family == "qwen3":
        base["head_dim"] = 2 * HALF  # others have it from the width
    config = CONFIG_MAPPING[family](**{**base, **changes})
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


def rewritten(folder: Path, **changes: Any) -> None:
    """Change config.json by hand; None removes a key."""
    path = folder / "config.json"
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if changes.get(key, 0) is not None}))


def assert_same(folder: Path, seq_len: int = SEQ_LEN) -> ModelConfig:
    model = ModelConfig(**read_folder_config(folder).keys)
    found = compare(model, folder, lambda stage: load_weights(stage, folder), seq_len)
    assert found.same, found.problems()
    assert found.largest_logit > 0.1
    return model


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_every_field_of_the_class_stands_in_the_table(family: str) -> None:
    fields = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])}
    unknown = fields - taken(family) - CHANGES_NOTHING - MUST_BE.keys()
    assert not unknown, f"new fields of {family}: do they change what it computes? see harness/model/config_fields.py"
    assert taken(family) <= fields
    assert taken(family) <= VARIANTS.keys()


READ_BY_ALL = (
    "transformers.masking_utils",
    "transformers.modeling_rope_utils",
    "transformers.integrations.sdpa_attention",
)
NO_VALUES = {"_attn_implementation", "get_text_config", "standardize_rope_params", "validate_rope", "json"}
"""What transformers reaches through a config object that is not a value of config.json."""


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_every_value_that_transformers_reads_stands_in_the_table(family: str) -> None:
    """Also those that no config class declares, which shared code looks for in any config."""
    found: set[str] = set()
    for module in (*READ_BY_ALL, f"transformers.models.{family}.modeling_{family}"):
        source = re.sub(r'""".*?"""', "", inspect.getsource(importlib.import_module(module)), flags=re.DOTALL)
        found |= set(re.findall(r"\bconfig\.(\w+)", source))
        found |= set(re.findall(r'(?:getattr|hasattr)\((?:self\.)?config, "(\w+)"', source))
    assert {"sliding_window", "is_causal", "rope_parameters"} <= found
    known = taken(family) | CHANGES_NOTHING | MUST_BE.keys() | NOT_IN_CLASS.keys() | KNOWN_NOTES | {"sliding_window"}
    assert not found - known - NO_VALUES, "do they change what it computes? see harness/model/config_fields.py"


def test_every_kind_of_scaled_rotary_positions_is_known() -> None:
    assert KINDS.keys() == ROPE_INIT_FUNCTIONS.keys()
    assert KINDS.keys() <= {rope["rope_type"] for rope in ROPE.values()}
    tried = {key for rope in ROPE.values() for key in rope}
    assert {key for kind in KINDS.values() for key in (*kind.needed, *kind.optional)} <= tried


def test_every_activation_without_weights_is_known() -> None:
    assert set(ACTIVATIONS) == {name for name in ACT2FN if not list(ACT2FN[name].parameters())}


CASES = [
    pytest.param(family, change, id=f"{family}-{field}-{number}")
    for family in MODEL_TYPES
    for field in sorted(taken(family))
    for number, change in enumerate(VARIANTS[field])
    if not (field == "sliding_window" and family != "mistral")  # alone it does nothing in the others
]


@pytest.mark.parametrize(("family", "change"), CASES)
def test_every_field_computes_what_transformers_computes(family: str, change: dict[str, Any], tmp_path: Path) -> None:
    saved(family, tmp_path, **change)
    assert_same(tmp_path)


@pytest.mark.parametrize("family", MODEL_TYPES)
def test_fields_that_change_nothing_are_passed_over(family: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    values = {
        "transformers_version": "4.30.0", "architectures": ["Other"], "output_hidden_states": True, "return_dict": True,
        "dtype": "bfloat16", "id2label": {"0": "a"}, "label2id": {"a": 0}, "problem_type": "regression", "use_cache": False,
        "bos_token_id": 1, "eos_token_id": [2, 3], "pad_token_id": 4, "pretraining_tp": 2, "max_window_layers": 1,
    }  # fmt: skip
    assert values.keys() == CHANGES_NOTHING
    rewritten(tmp_path, **values)
    assert_same(tmp_path)


REFUSED = {
    "attention_dropout": 0.1, "chunk_size_feed_forward": 8, "is_encoder_decoder": True, "is_causal": False,
    "use_bidirectional_attention": True, "attention_chunk_size": 8, "layer_types": ["chunked_attention"] * 4,
    "per_layer_config": {"1": {"intermediate_size": 64}}, "pruned_heads": {"0": [1]},
    "quantization_config": {"quant_method": "fp8"}, "compression_config": {"format": "pack"},
    "auto_map": {"AutoModelForCausalLM": "modeling.Mine"}, "hidden_act": "xielu", "partial_rotary_factor": 0.5,
    "rope_scaling": {"type": "su", "factor": 2.0}, "rope_parameters": {"full_attention": {"rope_type": "default"}},
}  # fmt: skip


def test_every_field_that_must_have_a_value_is_tried() -> None:
    assert MUST_BE.keys() | NOT_IN_CLASS.keys() <= REFUSED.keys()


@pytest.mark.parametrize("family", MODEL_TYPES)
@pytest.mark.parametrize("field", REFUSED)
def test_what_is_not_supported_is_refused_by_name(family: str, field: str, tmp_path: Path) -> None:
    saved(family, tmp_path)
    rewritten(tmp_path, **{field: REFUSED[field]})
    with pytest.raises(FolderConfigError) as raised:
        read_folder_config(tmp_path)
    named = {"rope_scaling": "su"}.get(field, field)
    assert named in str(raised.value) and "config.json" in str(raised.value)


def test_old_spellings_are_read(tmp_path: Path) -> None:
    saved("llama", tmp_path, rope_parameters={**ROPE["llama3"], "rope_theta": 500000.0})
    rope = {**ROPE["llama3"], "type": "llama3"}
    rewritten(
        tmp_path, rope_parameters=None, rope_theta=500000.0, rope_scaling=rope, dtype=None, torch_dtype="bfloat16"
    )
    model = assert_same(tmp_path)
    assert model.rope_theta == 500000.0 and model.rope_scaling == ROPE["llama3"]


def test_fields_that_are_absent_have_the_familys_defaults(tmp_path: Path) -> None:
    saved("smollm3", tmp_path, num_hidden_layers=4, rope_parameters={"rope_type": "default", "rope_theta": 2000000.0})
    rewritten(
        tmp_path,
        rope_parameters=None,
        no_rope_layers=None,
        no_rope_layer_interval=None,
        layer_types=None,
        head_dim=None,
    )
    model = assert_same(tmp_path)
    assert (model.rope_theta, model.no_rope_layer_interval, model.head_dim) == (2000000.0, 4, 8)


def test_a_head_dim_outside_of_the_class_is_what_transformers_takes(tmp_path: Path) -> None:
    for family in ("smollm3", "olmo2"):
        saved(family, tmp_path / family, head_dim=12)
        assert assert_same(tmp_path / family).head_dim == 12


def test_keys_that_transformers_does_not_read_are_told(tmp_path: Path) -> None:
    saved("llama", tmp_path)
    rewritten(tmp_path, attn_logit_softcapping=30.0, rope_interleaved=False, _name_or_path="x")
    assert read_folder_config(tmp_path).unread == ("attn_logit_softcapping",)


WRONG: dict[str, tuple[str, str]] = {
    "cut off": ('{"model_type": "llama", "hid', "not JSON, or truncated"),
    "empty": ("", "not JSON, or truncated"),
    "a list": ("[]", "expected a JSON object, got list"),
    "no type": ("{}", "model_type=None: expected one of smollm3"),
    "another": ('{"model_type": "gpt2"}', "model_type=gpt2: expected one of smollm3"),
    "strange": ('{"model_type": "llama", "hidden_size": "wide"}', "transformers can't read it"),
    "rope": ('{"model_type": "llama", "rope_scaling": {"rope_type": "yarn"}}', "transformers can't read it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_config_that_is_not_one_is_refused_with_its_file(case: str, tmp_path: Path) -> None:
    content, message = WRONG[case]
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(FolderConfigError, match=message) as raised:
        read_folder_config(tmp_path)
    assert str(tmp_path / "config.json") in str(raised.value)


def test_a_folder_that_is_no_model_says_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints" / "step-00000010").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").touch()
    (tmp_path / "run" / "checkpoints" / "step-00000010" / "manifest.json").touch()
    (tmp_path / "outer" / "step-9").mkdir(parents=True)
    (tmp_path / "outer" / "step-9" / "config.json").touch()
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").touch()
    (tmp_path / "bare").mkdir()
    messages = {
        "run": "is a run: export its weights",
        "run/checkpoints": "is a checkpoint of a run: export",
        "run/checkpoints/step-00000010": "is a checkpoint of a run: export",
        "run/config.yaml": "is a file: give the folder",
        "outer": "step-9 has: give that folder",
        "lora": "is an adapter",
        "bare": "has no config.json",
        "nowhere": "no such folder",
    }
    for name, message in messages.items():
        with pytest.raises(FolderConfigError, match=message):
            read_folder_config(tmp_path / name)
