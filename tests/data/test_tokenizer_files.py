import json
from pathlib import Path

import pytest

from harness.data.errors import DataError
from harness.data.tokenizer_files import locate_tokenizer, read_tokenizer


def write_tokenizer(folder: Path, vocab: object, added: list[dict] | None = None, **files: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({"model": {"vocab": vocab, "merges": []}, "added_tokens": added or []}))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return path


def test_reads_a_trained_tokenizer(prepared: Path) -> None:
    from tokenizers import Tokenizer

    path = prepared / "tokenizer" / "tokenizer.json"
    facts = read_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path))
    assert facts.size == tokenizer.get_vocab_size() == 500
    assert (facts.eos_token, facts.eos_token_id) == ("<|endoftext|>", tokenizer.token_to_id("<|endoftext|>"))


def test_transformers_reads_it_too(prepared: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(prepared / "tokenizer")
    assert tokenizer.decode(tokenizer("Töne, bade!")["input_ids"]) == "Töne, bade!"
    assert tokenizer.eos_token == "<|endoftext|>"


def test_added_tokens_count(tmp_path: Path) -> None:
    facts = read_tokenizer(write_tokenizer(tmp_path, {"a": 0, "b": 1}, [{"content": "<|end_of_text|>", "id": 9}]))
    assert (facts.size, facts.eos_token_id) == (10, 9)


def test_unigram_vocabularies_are_lists(tmp_path: Path) -> None:
    facts = read_tokenizer(write_tokenizer(tmp_path, [["<unk>", 0.0], ["</s>", 0.0], ["a", -1.5]]))
    assert (facts.size, facts.eos_token_id) == (3, 1)


@pytest.mark.parametrize("named", ["stop", {"content": "stop", "special": True}])
def test_the_config_names_the_end_of_documents(tmp_path: Path, named: object) -> None:
    path = write_tokenizer(tmp_path, {"<|endoftext|>": 0, "stop": 1}, tokenizer_config={"eos_token": named})
    assert read_tokenizer(path).eos_token_id == 1


@pytest.mark.parametrize("content", ["", '{"eos_token": "sto', "[]"])
def test_a_damaged_file_beside_it_is_named(tmp_path: Path, content: str) -> None:
    """Else another token that ends documents would be guessed."""
    path = write_tokenizer(tmp_path, {"<|endoftext|>": 0, "stop": 1}, tokenizer_config={"eos_token": "stop"})
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(DataError, match=rf"^{tmp_path}/tokenizer_config\.json: damaged, not an object of JSON"):
        read_tokenizer(path)


def test_identity_is_the_vocabulary(tmp_path: Path) -> None:
    one, same, other = (
        read_tokenizer(write_tokenizer(tmp_path / name, vocab, added)).identity
        for name, vocab, added in [
            ("1", {"a": 0}, None),
            ("2", {"a": 0}, [{"content": "x", "id": 1}]),
            ("3", {"b": 0}, None),
        ]
    )
    assert one == same != other


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": {"vocab": 3}}'])
def test_refuses_what_is_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"is not a tokenizer\.json"):
        read_tokenizer(path)


def test_locates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tokenizer(tmp_path / "data" / "tokenizer", {"a": 0})
    assert locate_tokenizer(str(path)) == path
    assert locate_tokenizer(str(path.parent)) == path
    assert locate_tokenizer("tokenizer/tokenizer.json", near=tmp_path / "data") == path
    assert locate_tokenizer("tokenizer/tokenizer.json", near=tmp_path) is None
    assert locate_tokenizer("no-such-org/no-such-name") is None
