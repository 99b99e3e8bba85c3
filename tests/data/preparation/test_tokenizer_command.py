import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from harness.data.__main__ import main
from harness.data.preparation.train_tokenizer import EOS_TOKEN, train_tokenizer
from tests.data.preparation.conftest import FRENCH, story, write_documents


@pytest.fixture
def languages(tmp_path: Path) -> list[str]:
    english = write_documents(tmp_path / "en", [story(seed) for seed in range(30)])
    french = write_documents(tmp_path / "fr", [f"{FRENCH} {number}" for number in range(30)])
    return ["--input", f"en={english}", "--input", f"fr={french}"]


def small_tokenizer(folder: Path, text: str, vocab_size: int, pre_tokenizer: str = "gpt2") -> Path:
    folder.mkdir()
    train_tokenizer(iter([text]), folder / "tokenizer.json", vocab_size, pre_tokenizer)
    return folder


def test_trains_and_compares(tmp_path: Path, languages: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    rival = small_tokenizer(tmp_path / "rival", "nothing of use", 258)
    command = ["tokenizer", *languages, "--output", f"{tmp_path}/made", "--vocab-size", "600", "--against", str(rival)]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["language", "tokenizer", "vocabulary", "tokens/word", "continued", "bytes/token"]
    assert [line.split()[:2] for line in lines[1:]] == [
        ["en", f"{tmp_path}/made"],
        ["en", str(rival)],
        ["fr", f"{tmp_path}/made"],
        ["fr", str(rival)],
    ]
    made, poor = json.loads((tmp_path / "made" / "comparison.json").read_text())[:2]
    assert made["language"] == poor["language"] == "en" and made["words"] == poor["words"] > 100
    assert made["fertility"] < poor["fertility"] and made["continued_word_share"] < poor["continued_word_share"]
    assert poor["continued_word_share"] > 0.95  # it knows bytes and next to nothing else
    assert made["bytes"] == poor["bytes"] and made["bytes_per_token"] > poor["bytes_per_token"]


def test_figures_are_right(tmp_path: Path) -> None:
    """By hand: the tokenizer below knows ' ab' and bytes."""
    rival = small_tokenizer(tmp_path / "rival", " ab ab ab ab ab ab", 259)
    assert Tokenizer.from_file(str(rival / "tokenizer.json")).encode(" ab").tokens == ["Ġab"]
    texts = write_documents(tmp_path / "in", ["ab ab abc d"])
    assert main(["tokenizer", "--input", f"x={texts}", "--against", str(rival), "--json", f"{tmp_path}/out.json"]) == 0
    [found] = json.loads((tmp_path / "out.json").read_text())
    assert (found["words"], found["tokens"], found["continued_words"]) == (4, 1 + 1 + 2 + 2, 2)
    assert (found["fertility"], found["continued_word_share"], found["bytes_per_token"]) == (1.5, 0.5, round(12 / 6, 4))


def test_truncation_and_padding_change_no_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rival = small_tokenizer(tmp_path / "rival", " ab ab ab ab ab ab", 259)
    texts = write_documents(tmp_path / "in", ["ab ab abc d"])
    (texts / "notes.pdf").touch()
    command = ["tokenizer", "--input", f"x={texts}", "--against", str(rival)]
    assert main(command) == 0
    plain = capsys.readouterr().out
    assert plain.splitlines()[-1] == "passed over 1 file (unknown suffix 1)"
    tokenizer = Tokenizer.from_file(str(rival / "tokenizer.json"))
    tokenizer.enable_truncation(1)
    tokenizer.enable_padding(length=7)
    tokenizer.save(str(rival / "tokenizer.json"))
    assert main(command) == 0
    assert capsys.readouterr().out == plain


def test_a_bad_row_is_named_without_an_option_that_is_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = write_documents(tmp_path / "in", ["ab"])
    (texts / "00.jsonl").write_text("{broken")
    assert main(["tokenizer", "--input", f"x={texts}", "--output", f"{tmp_path}/made"]) == 2
    error = capsys.readouterr().err
    assert f"{texts}/00.jsonl line 1: not JSON" in error and "--max-bad-lines" not in error


@pytest.mark.parametrize(
    ("kind", "cut"), [("gpt2", ["12345"]), ("llama3", ["123", "45"]), ("digits", ["1", "2", "3", "4", "5"])]
)
def test_how_numbers_are_cut(tmp_path: Path, kind: str, cut: list[str]) -> None:
    folder = small_tokenizer(tmp_path / "made", "12345 " * 50, 300, kind)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.encode("12345").tokens == cut
    text = "It's 12,345.6 €\n\n\tfor 世界  and   more"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id(EOS_TOKEN) == 0


def test_the_same_input_gives_the_same_tokenizer(tmp_path: Path, languages: list[str]) -> None:
    for name in ("one", "two"):
        assert main(["tokenizer", *languages, "--output", f"{tmp_path}/{name}", "--vocab-size", "400"]) == 0
    assert (tmp_path / "one/tokenizer.json").read_bytes() == (tmp_path / "two/tokenizer.json").read_bytes()


def test_prepare_takes_what_it_made(tmp_path: Path, languages: list[str]) -> None:
    assert main(["tokenizer", *languages, "--output", f"{tmp_path}/made", "--vocab-size", "400"]) == 0
    where = ["prepare", "--input", f"{tmp_path}/en", "--output", f"{tmp_path}/out", "--tokenizer", f"{tmp_path}/made"]
    assert main(where) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "text", "--output", "made"], "--input text: must be LANGUAGE=PATH, such as en=text"),
        (["--input", "en=nowhere", "--output", "made"], "--input nowhere: does not exist"),
        (["--input", "en=text"], "give --output to train a tokenizer, --against to compare others, or both"),
        (["--input", "en=text", "--output", "made", "--vocab-size", "9"], "--vocab-size 9: must be at least 257"),
        (["--input", "en=text", "--output", "text"], "--output text: exists. Choose another folder."),
        (["--input", "en=text", "--against", "nowhere"], "--against nowhere: no tokenizer.json there"),
        (["--input", "en=text", "--input", "en=text", "--output", "made"], "en was given before"),
        (["--input", "en=blank", "--output", "made"], "--input en=blank: no text in it"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents(tmp_path / "text", [story(1)])
    (tmp_path / "blank").mkdir()
    (tmp_path / "blank" / "a.txt").write_text(" \n")
    assert main(["tokenizer", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["blank", "text"]
