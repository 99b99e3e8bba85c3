"""A run that began from a folder goes on without it; one that has no checkpoint yet starts from it again."""

from pathlib import Path

import pytest

from harness.config.errors import ConfigError
from harness.config.schema import ModelConfig
from harness.model.composed import composed_run
from harness.model.load import weight_problems
from harness.run.folder import RunFolder
from tests.tiny import tiny_model, tiny_run

BEGAN = {
    "model_type": "llama",
    "no_rope_layer_interval": 0,
    "rope_theta": 777.0,
    "attention_bias": True,
    "init_from": "/gone/hf",
}


def run_of(root: Path, *, checkpoint: bool, **model: object) -> RunFolder:
    run = tiny_run(root, model__model_type="smollm3")
    config = run.load_config()
    config.model = tiny_model(**model)
    run.save_config(config)
    if checkpoint:
        (run.checkpoints_dir / "step-00000003").mkdir()
    return run


def again(run: RunFolder, *overrides: str) -> ModelConfig:
    return composed_run(["+exp=tiny", f"runs_dir={run.path.parent}", f"run.name={run.name}", *overrides]).model


def test_once_there_is_a_checkpoint_the_folder_is_neither_needed_nor_frozen(tmp_path: Path) -> None:
    run = run_of(tmp_path, checkpoint=True, **BEGAN)
    began = run.load_config().model
    assert again(run) == began, "left out"
    assert again(run, "model.init_from=/gone/hf") == began
    assert vars(again(run, "model.init_from=/moved/hf")) == {**vars(began), "init_from": "/moved/hf"}
    assert again(run, "model.rope_theta=5.0").rope_theta == 5.0, "what the user sets is left to the launch to refuse"


def test_before_the_first_checkpoint_the_folder_is_needed(tmp_path: Path) -> None:
    run = run_of(tmp_path, checkpoint=False, **BEGAN)
    (tmp_path / "hf").mkdir()
    with pytest.raises(ConfigError, match=r"has no config\.json"):
        again(run, f"model.init_from={tmp_path / 'hf'}")
    missing = again(run, "model.init_from=/gone/hf")
    assert weight_problems(missing)[0].startswith("model.init_from=/gone/hf: no such folder")
    assert again(run).model_type == "smollm3", "left out, it is a run from random weights"


def test_a_run_from_random_weights_is_what_its_overrides_say(tmp_path: Path) -> None:
    run = run_of(tmp_path, checkpoint=True, rope_theta=777.0)
    assert again(run).rope_theta == 10000.0
