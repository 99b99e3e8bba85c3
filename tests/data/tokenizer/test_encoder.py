import json
import struct
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import BertProcessing, TemplateProcessing

from harness.data.errors import DataError
from harness.data.preparation.encode import EncodeDocuments
from harness.data.token_files import open_source
from harness.data.tokenizer.encoder import open_encoder, remarks

EOS = "<|endoftext|>"
TEXT = "GPT-2 ends documents with <|endoftext|> and goes on. " * 50


@pytest.fixture
def tokenizer(prepared: Path) -> Tokenizer:
    return Tokenizer.from_file(str(prepared / "tokenizer" / "tokenizer.json"))


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def test_nothing_is_cut_or_padded(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = open_encoder(saved(tokenizer, tmp_path), EOS).encode([TEXT, "short"])
    assert plain[1] == [*tokenizer.encode("short").ids, 0]
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(pad_id=0, pad_token=EOS)
    path = saved(tokenizer, tmp_path)
    encoder = open_encoder(path, EOS)
    assert encoder.encode([TEXT, "short"]) == plain
    assert remarks(path, encoder) == [
        "tokenizer.json truncates to 8 tokens: not applied, documents are encoded whole",
        "tokenizer.json pads: not applied",
    ]


def test_special_tokens_in_text_are_text(tmp_path: Path, tokenizer: Tokenizer) -> None:
    tokenizer.add_tokens([AddedToken("<think>", special=False)])
    encoder = open_encoder(saved(tokenizer, tmp_path), EOS)
    [ids] = encoder.encode([TEXT])
    assert ids.count(0) == 1 and ids[-1] == 0
    assert tokenizer.decode(ids[:-1], skip_special_tokens=False) == TEXT
    assert encoder.spelled_out(TEXT) == Counter({EOS: 50})
    assert encoder.encode(["<think>"]) == [[tokenizer.token_to_id("<think>"), 0]]  # no special one: it stays a token


def test_dropout_is_off(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plain = open_encoder(saved(tokenizer, tmp_path), EOS).encode([TEXT])
    tokenizer.model.dropout = 0.5
    path = saved(tokenizer, tmp_path)
    encoder = open_encoder(path, EOS)
    assert [encoder.encode([TEXT]) for _ in range(3)] == [plain] * 3
    assert remarks(path, encoder) == ["tokenizer.json has BPE dropout 0.5: not applied"]


@pytest.mark.parametrize(
    ("processor", "before", "after"),
    [
        (lambda b: TemplateProcessing(single="<b> $A", special_tokens=[("<b>", b)]), ["<b>"], [EOS]),
        (lambda b: TemplateProcessing(single="<b> $A <e>", special_tokens=[("<b>", b), ("<e>", 0)]), ["<b>"], [EOS]),
        (lambda b: TemplateProcessing(single="$A <b>", special_tokens=[("<b>", b)]), [], ["<b>", EOS]),
        (lambda b: BertProcessing((EOS, 0), ("<b>", b)), ["<b>"], [EOS]),
    ],
)
def test_what_the_post_processor_adds(tmp_path: Path, tokenizer: Tokenizer, processor, before, after) -> None:
    tokenizer.add_special_tokens(["<b>"])
    own = tokenizer.encode("one text").ids
    tokenizer.post_processor = processor(tokenizer.token_to_id("<b>"))
    path = saved(tokenizer, tmp_path)
    encoder = open_encoder(path, EOS)
    assert (encoder.names(encoder.before), encoder.names(encoder.after)) == (before, after)
    ids = [tokenizer.token_to_id(name) for name in before + after]
    assert encoder.encode(["one text"]) == [[*ids[: len(before)], *own, *ids[len(before) :]]]
    assert any("<b>, which the tokenizer's post-processor adds" in remark for remark in remarks(path, encoder)) == bool(
        before
    )


def test_the_token_that_ends_documents_does_not_begin_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """OPT's tokenizer does so; in training it would be a document of one token."""
    tokenizer.post_processor = TemplateProcessing(single=f"{EOS} $A", special_tokens=[(EOS, 0)])
    path = saved(tokenizer, tmp_path)
    encoder = open_encoder(path, EOS)
    assert encoder.encode(["one"])[0].count(0) == 1
    assert remarks(path, encoder) == [
        "the tokenizer's post-processor begins documents with <|endoftext|>, which ends them here: not added in front"
    ]


def test_a_vocabulary_that_lacks_characters(tmp_path: Path) -> None:
    path = saved(Tokenizer(BPE({"a": 0, "b": 1, EOS: 2}, [])), tmp_path)
    assert "characters that the vocabulary lacks are dropped" in remarks(path, open_encoder(path, EOS))[0]


def test_a_file_that_is_no_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="the tokenizers library cannot load it"):
        open_encoder(tmp_path / "tokenizer.json", EOS)
    with pytest.raises(DataError, match="no token '<none>' in its vocabulary"):
        open_encoder(saved(Tokenizer(BPE({"a": 0}, [])), tmp_path), "<none>")


def written(folder: Path, tokenizer: Path, texts: list[str]) -> tuple[list[int], Counter[str]]:
    """Tokens and statistics of one task."""
    step = EncodeDocuments(folder, tokenizer)
    step.run(iter([Document(text, str(number)) for number, text in enumerate(texts)]))
    source = open_source("made", folder)
    tokens = np.fromfile(source.files[0].path, f"<u{source.token_size}").tolist()
    return tokens, Counter({key: int(value.total) for key, value in step.stats.stats.items()})


@pytest.mark.parametrize(("highest", "width"), [(65_535, 2), (65_536, 4)])
def test_width_goes_by_the_highest_id(tmp_path: Path, highest: int, width: int) -> None:
    """Ids may have gaps: datatrove's own count of tokens would take two bytes for both."""
    path = saved(Tokenizer(WordLevel({"a": 0, EOS: 1, "z": highest}, unk_token="a")), tmp_path)
    tokens, _ = written(tmp_path / "out", path, ["z"])
    assert tokens == [highest, 1]
    assert open_source("made", tmp_path / "out").token_size == width == struct.calcsize("<H" if width == 2 else "<I")


def test_special_and_unknown_ids_that_the_vocabulary_makes_of_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer(Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], unk_id=0))
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    _, stats = written(tmp_path / "out", saved(tokenizer, tmp_path), ["a</s>a", "azza"])
    assert (stats["spelled_out"], stats["spelled_out_</s>"], stats["special_ids"]) == (1, 1, 1)
    assert stats["unknown_tokens"] == 1
    words = Tokenizer(WordLevel({"[UNK]": 0, EOS: 1, "one": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = Whitespace()
    _, stats = written(tmp_path / "words", saved(words, tmp_path), ["one two three"])
    assert stats["unknown_tokens"] == 2


def test_json_of_the_model_is_read_once(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = saved(tokenizer, tmp_path)
    assert "vocab" not in open_encoder(path, EOS).model and "vocab" in json.loads(path.read_text())["model"]
