"""A tokenizer that lies beside token files in an object store."""

from pathlib import Path

import pytest

from harness.data.errors import DataError
from harness.data.origins import StoreFolder
from harness.data.stored_tokenizer import fetch
from harness.data.tokenizer_files import locate_tokenizer
from tests.data.test_tokenizer_files import write_tokenizer


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tokenizer(tmp_path / "web" / "tokenizer", {"a": 0}, tokenizer_config={"eos_token": "a"})
    (tmp_path / "web" / "tokenizer" / "notes.txt").write_text("mine")
    return tmp_path / "web"


def store(web: Path) -> StoreFolder:
    return StoreFolder(f"file://{web}", "data.sources.web")


@pytest.mark.parametrize("name", ["tokenizer/tokenizer.json", "tokenizer", "tokenizer/"])
def test_it_is_brought_with_the_files_that_say_more_of_it(web: Path, name: str) -> None:
    near = fetch(store(web), name, "key")
    found = locate_tokenizer(name, near)
    assert found is not None and found.is_relative_to(web.parent / "cache" / "harness" / "tokenizers")
    assert sorted(path.name for path in found.parent.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert found.read_bytes() == (web / "tokenizer" / "tokenizer.json").read_bytes()


def test_one_right_beside_the_token_files(web: Path) -> None:
    write_tokenizer(web, {"b": 0})
    near = fetch(store(web), "tokenizer.json", "key")
    assert near is not None and (near / "tokenizer.json").read_bytes() == (web / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "name", ["HuggingFaceTB/SmolLM3-3B", "gpt2", "/data/tokenizer.json", "../tokenizer", "notes.txt"]
)
def test_names_of_other_places_bring_nothing(web: Path, name: str) -> None:
    assert fetch(store(web), name, "key") is None
    assert not (web.parent / "cache").exists()


def test_it_is_brought_once(web: Path) -> None:
    near = fetch(store(web), "tokenizer", "key")
    assert near is not None
    copy = near / "tokenizer" / "tokenizer.json"
    inode = copy.stat().st_ino
    fetch(store(web), "tokenizer", "key")
    assert copy.stat().st_ino == inode


def test_a_cache_that_can_not_be_written(web: Path) -> None:
    (web.parent / "cache").touch()
    with pytest.raises(
        DataError, match=r"^key: file://.*/tokenizer\.json cannot be brought to .*/cache/harness/tokenizers: "
    ):
        fetch(store(web), "tokenizer", "key")
