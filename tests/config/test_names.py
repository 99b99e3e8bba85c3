"""The rule for run.name."""

import pytest

from harness.config.names import MAX_NAME, name_problem


@pytest.mark.parametrize("name", ["a", "Tiny", "2026_11_27", "1.10", "sw,lr=1e-4", "_x", "a" * MAX_NAME, "up", "a..b"])
def test_good(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "-foo",
        "--help",
        ".",
        "..",
        ".hidden",
        "a/b",
        "a b",
        "a\n",
        "größe",
        "=a",
        ",a",
        "~a",
        "a*",
        "a" * 129,
        "a" * 300,
    ],
)
def test_bad(name: str) -> None:
    said = name_problem(name)
    assert said is not None and said.startswith("run.name=") and len(said) < 200 + MAX_NAME


def test_the_longest_name_fits_the_files_named_after_it() -> None:
    """A registration is named after run, attempt and node, and written under a temporary name that is longer still."""
    assert len(f".{'a' * MAX_NAME}.1234567.{'n' * 64}.json.01234567.tmp") <= 255
