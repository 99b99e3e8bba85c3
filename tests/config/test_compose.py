"""Composition: what users type, and what they are told when it is wrong."""

from pathlib import Path

import pytest

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.overrides import available, expand_sweep, swept_keys
from harness.config.schema import ClusterKind, Precision


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(list(overrides))
    return caught.value.problems


@pytest.mark.parametrize("experiment", available("exp"))
def test_every_experiment_composes(experiment: str) -> None:
    config = compose([f"+exp={experiment}"])
    assert config.run.name == config.exp == experiment


def test_command_line_wins() -> None:
    config = compose(["+exp=smol3b", "cluster=local", "optim.lr=1e-3", "train.precision=fp32", "run.name=mine"])
    assert config.cluster.kind is ClusterKind.local
    assert config.train.precision is Precision.fp32
    assert (config.optim.lr, config.run.name) == (1e-3, "mine")


def test_async_is_typed_as_the_contract_says() -> None:
    assert compose(["+exp=tiny", "checkpoint.async=true"]).checkpoint.async_save is True


def test_any_sbatch_flag_is_welcome() -> None:
    config = compose(["+exp=smol3b", "cluster.sbatch.reservation=smol", "cluster.sbatch.mem=0"])
    assert config.cluster.sbatch == {"reservation": "smol", "mem": "0"}


def test_all_problems_are_reported_at_once() -> None:
    found = problems("+exp=tiny", "train.stepz=3", "optim.lr=fast", "cluster=slrm", "train.precision=fp64")
    assert len(found) == 4
    text = "\n".join(found)
    assert "train.stepz=3: no such key; did you mean train.steps" in text
    assert "optim.lr=fast" in text and "cluster=slrm: choose one of local, slurm" in text
    assert "train.precision=fp64" in text and "bf16" in text


def test_token_files_get_names_of_their_own() -> None:
    data = compose(["+exp=tiny", "+data.sources.web.path=tokens/web", "+data.validation.web.path=tokens/held_out"]).data
    assert (data.sources["web"].path, data.validation["web"].path) == ("tokens/web", "tokens/held_out")


def test_unknown_keys_are_errors_even_with_a_plus() -> None:
    assert problems("+exp=tiny", "+train.stepz=3")[0].startswith("train.stepz: no such key; did you mean train.steps")
    assert problems("+exp=tiny", "+nonsense=3")[0].startswith("nonsense: no such key")


def test_wrong_experiment_names_the_right_ones() -> None:
    assert problems("+exp=smol4b") == [f"exp=smol4b: choose one of {', '.join(available('exp'))}"]


def test_not_an_override() -> None:
    assert problems("+exp=tiny", "a b")[0].startswith("a b: not an override")


def test_without_an_experiment_the_missing_keys_are_named() -> None:
    found = problems()
    assert any(text.startswith("train.steps is not set") and "+exp=" in text for text in found)


@pytest.mark.parametrize("name", ["a/b", ".hidden", "../up", "with space"])
def test_run_names_that_are_no_folder_names(name: str) -> None:
    assert problems("+exp=tiny", f"run.name='{name}'")[0].startswith(f"run.name={name}")


def test_a_sweep_is_the_product_of_its_values() -> None:
    overrides = ["+exp=tiny", "optim.lr=1e-4,2e-4", "train.seed=range(0,3)"]
    combinations = expand_sweep(overrides)
    assert len(combinations) == 6
    assert {compose(combination).optim.lr for combination in combinations} == {1e-4, 2e-4}
    assert swept_keys(overrides) == ["optim.lr", "train.seed"]


def test_a_list_is_no_sweep() -> None:
    assert len(expand_sweep(["+exp=tiny", "optim.betas=[0.9,0.99]"])) == 1


def test_config_dir_adds_experiments(tmp_path: Path) -> None:
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "ours.yaml").write_text(
        "# @package _global_\ndefaults:\n  - tiny\nexp: ours\ntrain:\n  steps: 7\n"
    )
    assert compose(["+exp=ours"], tmp_path).train.steps == 7


def test_config_dir_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        compose(["+exp=tiny"], tmp_path / "absent")
