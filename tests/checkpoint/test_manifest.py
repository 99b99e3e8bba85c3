import json
from pathlib import Path

import pytest

from harness.checkpoint.manifest import (
    CorruptCheckpoint,
    Manifest,
    check_file,
    check_sizes,
    describe_file,
    differences,
    identity,
)
from harness.config.schema import RootConfig
from tests.tiny import tiny_model


def written(folder: Path) -> Manifest:
    (folder / "a").write_bytes(b"x" * 100_000)
    (folder / "b").write_bytes(b"")
    files = (describe_file(folder / "a"), describe_file(folder / "b"))
    manifest = Manifest(7, 700, 2, 1, {"model.hidden_size": 4}, files, "2.13", 1.5)
    manifest.write(folder)
    return manifest


def test_manifest_survives_writing_and_reading(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    assert Manifest.read(tmp_path) == manifest and manifest.size == 100_000
    check_sizes(tmp_path, manifest)
    for record in manifest.files:
        check_file(tmp_path, record)


def test_damage_is_named(tmp_path: Path) -> None:
    manifest = written(tmp_path)
    (tmp_path / "a").write_bytes(b"x" * 50_000 + b"y" + b"x" * 49_999)
    check_sizes(tmp_path, manifest)
    with pytest.raises(CorruptCheckpoint, match="a is damaged: CRC-32"):
        check_file(tmp_path, manifest.files[0])
    (tmp_path / "a").write_bytes(b"x" * 99_999)
    with pytest.raises(CorruptCheckpoint, match="a has 99999 bytes instead of 100000"):
        check_sizes(tmp_path, manifest)
    (tmp_path / "a").unlink()
    with pytest.raises(CorruptCheckpoint, match="a: No such file"):
        check_sizes(tmp_path, manifest)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is missing"),
        ("", "can't be read"),
        ('{"format": 1', "can't be read"),
        ("[]", "is not complete"),
        ('{"format": 9}', "has format 9, this version reads 1"),
        ('{"format": 1, "files": [{"name": "a"}]}', "is not complete"),
        ('{"format": 1, "files": []}', "is not complete"),
    ],
)
def test_manifest_that_says_nothing_is_corrupt(change: str | None, message: str, tmp_path: Path) -> None:
    if change is not None:
        (tmp_path / "manifest.json").write_text(change)
    with pytest.raises(CorruptCheckpoint, match=message):
        Manifest.read(tmp_path)


def test_names_that_lead_outside_are_refused(tmp_path: Path) -> None:
    written(tmp_path)
    content = json.loads((tmp_path / "manifest.json").read_text())
    content["files"][0]["name"] = "../a"
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(CorruptCheckpoint, match=r"outside of the checkpoint: \.\./a"):
        check_sizes(tmp_path, Manifest.read(tmp_path))


def test_differences_name_key_and_both_values() -> None:
    config = RootConfig()
    config.model = tiny_model()
    before = identity(config, {"seed": 1, "stages": [{"weights": {"web": 1.0}}]})
    config.model.hidden_size, config.model.init_from = 32, "elsewhere"
    after = identity(config, {"seed": 1, "stages": [{"weights": {"web": 0.5}}]})
    assert differences(json.loads(json.dumps(before)), after) == [
        "data.stages.0.weights.web: 1.0 in the checkpoint, 0.5 now",
        "model.hidden_size: 64 in the checkpoint, 32 now",
    ]


def test_what_an_older_checkpoint_does_not_say_of_its_model_was_the_default(tmp_path: Path) -> None:
    config = RootConfig()
    config.model = tiny_model(init_from="elsewhere")
    now = identity(config, {})
    later = (
        "rope_scaling",
        "hidden_act",
        "attention_bias",
        "mlp_bias",
        "sliding_window",
        "layer_types",
        "no_rope_layers",
    )
    old = {key: value for key, value in now.items() if key.removeprefix("model.") not in later}
    assert len(now) - len(old) == len(later)
    Manifest(3, 30, 1, 0, old, (), "2.13", 0.0).write(tmp_path)
    assert differences(Manifest.read(tmp_path).identity, now) == []
    config.model.hidden_act = "relu"
    assert differences(Manifest.read(tmp_path).identity, identity(config, {})) == [
        "model.hidden_act: silu in the checkpoint, relu now"
    ]
