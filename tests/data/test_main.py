import subprocess
import sys
from pathlib import Path

import pytest

import harness.data.preparation.corpus as corpus
from harness.data.__main__ import main
from tests.data.conftest import write_texts


def test_help_names_the_commands() -> None:
    done = subprocess.run([sys.executable, "-m", "harness.data", "--help"], capture_output=True, text=True, check=True)
    assert "prepare" in done.stdout and "corpus" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["prepare"], ["prepare", "--input", "x", "--output", "y", "--format", "csv"]]
)
def test_usage_errors(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    assert exit.value.code == 2
    assert "usage: python -m harness.data" in capsys.readouterr().err


def test_stopped_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.data.preparation.finish.open_source", interrupt)
    texts = write_texts(tmp_path / "in")
    assert main(["prepare", "--input", str(texts), "--output", f"{tmp_path}/out", "--vocab-size", "300"]) == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".out.partial", "in"]
    assert "stopped; what was completed is kept: the same command goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(corpus, "_from_package", interrupt)
    assert main(["corpus", "--output", f"{tmp_path}/corpus"]) == 130
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".out.partial", "in"]
    assert "stopped; nothing was written" in capsys.readouterr().err


def test_an_option_given_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last one would win, and the first go unread."""
    with pytest.raises(SystemExit) as exit:
        main(["prepare", "--input", "a", "--output", "x", "--tokenizer", "a", "--tokenizer", "b"])
    assert exit.value.code == 2
    assert "error: argument --tokenizer: given twice, and takes one value" in capsys.readouterr().err
