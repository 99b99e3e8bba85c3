"""What a run starts from is compared with plain transformers before any GPU-hour is spent."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.model import compare
from harness.model.build import transformers_config
from harness.preflight.check_weights import check_weights
from harness.preflight.finding import Status, Subject
from tests.preflight.subjects import subject
from tests.tiny import tiny_model

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
FIELDS: dict[str, Any] = {
    "model_type": "llama",
    "no_rope_layer_interval": 0,
    "rope_scaling": YARN,
    "initializer_range": 0.3,
}


def started(root: Path, **trained: Any) -> Subject:
    """A run that starts from a folder, as it is composed; `trained`: what it trains instead."""
    folder = root / "hf"
    AutoModelForCausalLM.from_config(transformers_config(tiny_model(**FIELDS))).save_pretrained(folder)
    made = subject(root)
    made.config.model = tiny_model(**{**FIELDS, "init_from": str(folder), **trained})
    return made


def test_the_same_model_is_ok(tmp_path: Path) -> None:
    found = check_weights(started(tmp_path))
    assert found.status is Status.ok, found.failures
    assert "differ by" in found.summary and "0 weights not found, 0 not used" in found.summary
    assert found.facts["largest_difference"] <= found.facts["tolerance"] * found.facts["largest_logit"]


@pytest.mark.parametrize("trained", [{"rope_scaling": {}}, {"rms_norm_eps": 0.1}, {"hidden_act": "gelu"}])
def test_another_function_fails(trained: dict[str, Any], tmp_path: Path) -> None:
    found = check_weights(started(tmp_path, **trained))
    assert found.status is Status.failed
    assert "differ by" in found.failures[0] and found.failures[0].startswith("model.init_from=")


def test_a_change_on_purpose_is_compared_as_changed(tmp_path: Path) -> None:
    changed = {"rope_theta": 123.0, "init_from_changes": ["rope_theta"]}
    assert check_weights(started(tmp_path, **changed)).status is Status.ok


def test_what_is_wrong_with_the_weights_is_named(tmp_path: Path) -> None:
    made = started(tmp_path)
    file = tmp_path / "hf" / "model.safetensors"
    tensors = load_file(file)
    broken = tensors["model.norm.weight"].clone()
    broken[3] = torch.nan
    save_file({**tensors, "model.norm.weight": broken}, file, metadata={"format": "pt"})
    assert any("weights that are not finite: model.norm.weight" in text for text in check_weights(made).failures)
    file.write_bytes(file.read_bytes()[:-1])
    (failure,) = check_weights(made).failures
    assert f"{file} (" in failure and "is truncated or damaged" in failure


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = started(tmp_path)
    monkeypatch.setattr(compare, "available_bytes", lambda: 1000)
    found = check_weights(made)
    assert found.status is Status.warning and "run `--only weights` on a node that has more" in found.warnings[0]


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert check_weights(subject(tmp_path)).summary == "the run starts from random weights"
    made = started(tmp_path / "other")
    made.config.runs_dir = str(tmp_path / "other")
    (tmp_path / "other" / made.config.run.name / "checkpoints" / "step-00000003").mkdir()
    assert check_weights(made).summary == "the run goes on from its own checkpoint"
