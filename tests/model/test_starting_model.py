"""A run that starts from a folder trains the folder's model: what the user left open is taken, what contradicts is refused."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from harness.config.compose import typed_model_keys
from harness.config.errors import ConfigError
from harness.config.schema import ModelConfig
from harness.model.composed import composed_run
from harness.model.starting_model import remarks

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama 3.1 in small. Tests must leave it as it is."""
    path = tmp_path_factory.mktemp("models") / "hf"
    config = AutoConfig.for_model(
        "llama", vocab_size=512, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=512, tie_word_embeddings=False, rms_norm_eps=1e-5,
        rope_parameters={**LLAMA3, "rope_theta": 500000.0}, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(path)
    return path


def composed(folder: Path, *overrides: str, extra_dir: Path | None = None) -> ModelConfig:
    return composed_run(["+exp=tiny", f"model.init_from={folder}", *overrides], extra_dir).model


def problems(folder: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        composed(folder, *overrides)
    return raised.value.problems


def test_all_that_the_user_did_not_set_is_taken_from_the_folder(folder: Path) -> None:
    assert dataclasses.asdict(composed(folder)) == dataclasses.asdict(
        ModelConfig(
            model_type="llama", hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, head_dim=32, vocab_size=512, max_position_embeddings=512, rope_theta=500000.0,
            rms_norm_eps=1e-5, tie_word_embeddings=False, no_rope_layer_interval=0, rope_scaling=LLAMA3, init_from=str(folder),
        )
    )  # fmt: skip


def test_what_the_user_says_as_the_folder_does_is_no_problem(folder: Path) -> None:
    same = ["model.model_type=llama", "model.rope_theta=5e5", "model.tie_word_embeddings=false", "model.head_dim=32"]
    assert composed(folder, *same) == composed(folder)


CONTRADICTIONS = {
    "model.rope_theta=10000": "model.rope_theta=10000.0: model.init_from={} has 500000.0 in config.json",
    "model.rms_norm_eps=1e-6": "model.rms_norm_eps=1e-06: model.init_from={} has 1e-05 in config.json",
    "model.hidden_size=128": "model.hidden_size=128: model.init_from={} has 64 in config.json",
    "model.vocab_size=600": "model.vocab_size=600: model.init_from={} has 512 in config.json",
    "model.tie_word_embeddings=true": "model.tie_word_embeddings=true: model.init_from={} has false in config.json",
    "model.model_type=qwen3": "model.model_type=qwen3: model.init_from={} has llama in config.json",
    "model.rope_scaling={rope_type: linear, factor: 2.0}": "model.rope_scaling={{'rope_type': 'linear', 'factor': 2.0}}: model.init",
    "model.head_dim=null": "model.head_dim=null: model.init_from={} has 32 in config.json",
    "model.hidden_act=relu": "model.hidden_act=relu: model.init_from={} has silu in config.json",
}


@pytest.mark.parametrize("override", CONTRADICTIONS)
def test_a_contradiction_is_refused_with_both_values(override: str, folder: Path) -> None:
    (problem,) = problems(folder, override)
    assert problem.startswith(CONTRADICTIONS[override].format(folder))
    assert f"leave {override.partition('=')[0]} out to take that" in problem


def test_all_contradictions_are_told_at_once(folder: Path) -> None:
    assert len(problems(folder, "model.rope_theta=1", "model.hidden_size=128", "model.num_hidden_layers=2")) == 3


def test_a_group_that_the_command_line_chooses_is_set_by_the_user(folder: Path) -> None:
    said = problems(folder, "model=llama_1b")
    assert any(problem.startswith("model.hidden_size=2048: ") for problem in said)
    assert not any("rms_norm_eps" in problem for problem in said), "the group and the folder agree"


def test_a_change_on_purpose_is_named(folder: Path) -> None:
    (refused,) = problems(folder, "model.rope_theta=2e6")
    assert "or set model.init_from_changes=[rope_theta] to train it with another on purpose" in refused
    model = composed(folder, "model.rope_theta=2e6", "model.init_from_changes=[rope_theta]")
    assert (model.rope_theta, model.rope_scaling) == (2e6, LLAMA3)
    (remark,) = remarks(model)
    assert remark.startswith("model.rope_theta=2000000.0: ") and "has 500000.0; changed on purpose" in remark
    (problem,) = problems(folder, "model.init_from_changes=[rope_theta]")
    assert (
        problem
        == "model.init_from_changes names rope_theta: model.rope_theta is not set; set it, or remove it from the list"
    )
    said = problems(folder, "model.hidden_size=128", "model.init_from_changes=[hidden_size]")
    assert said[0].startswith("model.init_from_changes names hidden_size: choose from rope_theta, ")


def test_longer_sequences_are_no_contradiction_where_they_change_nothing(folder: Path, tmp_path: Path) -> None:
    model = composed(folder, "model.max_position_embeddings=4096")
    assert model.max_position_embeddings == 4096
    assert remarks(model)[0].startswith("model.max_position_embeddings=4096: ")
    shutil.copytree(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 500000.0}
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_parameters": rope}))
    (problem,) = problems(tmp_path / "hf", "model.max_position_embeddings=4096")
    assert problem.startswith("model.max_position_embeddings=4096: ") and "has 512 in config.json" in problem


def test_keys_that_nobody_reads_are_told(folder: Path, tmp_path: Path) -> None:
    assert remarks(composed(folder)) == []
    shutil.copytree(folder, tmp_path / "hf")
    path = tmp_path / "hf" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "logit_scale": 0.5}))
    (remark,) = remarks(composed(tmp_path / "hf"))
    assert "transformers' llama does not read logit_scale, nor does the harness" in remark


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert problems(tmp_path)[0].startswith(f"model.init_from={tmp_path}: {tmp_path} has no config.json")


TYPED: dict[str, tuple[list[str], set[str]]] = {
    "nothing": (["+exp=tiny"], set()),
    "an experiment's own keys": (["+exp=long_context_32k"], {
        "init_from", "init_from_changes", "max_position_embeddings", "rope_theta"}),
    "the command line": (["+exp=tiny", "model.rope_theta=1e4", "++model.head_dim=8"], {"rope_theta", "head_dim"}),
    "a dict": (["+exp=tiny", "model.rope_scaling={rope_type: linear, factor: 2}"], {"rope_scaling"}),
    "a group": (["+exp=tiny", "model=tiny", "model.head_dim=8"], {
        "model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "vocab_size", "max_position_embeddings", "rope_theta", "no_rope_layer_interval", "tie_word_embeddings", "head_dim"}),
}  # fmt: skip


@pytest.mark.parametrize("case", TYPED)
def test_what_counts_as_set_by_the_user(case: str) -> None:
    overrides, expected = TYPED[case]
    assert typed_model_keys(overrides) == expected


def test_an_experiment_of_the_users_own_sets_keys_but_not_by_its_group(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("model_type: llama\nhidden_size: 48\n")
    text = "# @package _global_\ndefaults:\n  - override /model: mine\nexp: mine\nmodel:\n  rope_theta: 10000.0\n"
    (tmp_path / "exp" / "mine.yaml").write_text(text)
    assert typed_model_keys(["+exp=mine"], tmp_path) == {"rope_theta"}
