"""Paths that no file system takes."""

import pytest

from harness.config.compose import compose
from harness.config.errors import ConfigError

KEYS = ("runs_dir", "monitor.targets_dir", "data.packing_cache", "data.stage_to", "data.tokenizer", "model.init_from",
        "data.sources.demo.path")  # fmt: skip


def problems(*overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        compose(["+exp=tiny", *overrides])
    return caught.value.problems


@pytest.mark.parametrize(
    ("path", "says"),
    [
        (f"/x/{'a' * 256}/y", "a name of 256 bytes is too long"),
        ("/" + "ü" * 128, "a name of 256 bytes is too long"),
        ("/abc" * 1200, "4,800 bytes are too long for a path"),
    ],
)
def test_too_long(path: str, says: str) -> None:
    found = problems(*(f"{key}={path}" for key in KEYS))
    for key in KEYS:
        (said,) = (text for text in found if text.startswith(f"{key}=/"))
        assert says in said and len(said) < 200


def test_empty_or_not_printable() -> None:
    assert problems("runs_dir=", "monitor.targets_dir=' '", "data.packing_cache=") == [
        f"{key} is empty: give a folder" for key in ("runs_dir", "monitor.targets_dir", "data.packing_cache")
    ]
    (said,) = problems("data.tokenizer='a\nb'")
    assert said == "data.tokenizer='a\\nb': a path of printable characters is needed"
