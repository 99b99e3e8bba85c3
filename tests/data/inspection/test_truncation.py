from pathlib import Path

import pytest
from datatrove.data import Document
from datatrove.pipeline.tokens import DocumentTokenizer
from tokenizers import Tokenizer

from harness.data.__main__ import main
from harness.data.inspection.truncation import truncation_warning
from harness.data.preparation.prepare import Request, prepare
from harness.data.token_files import open_source
from tests.data.conftest import write_texts


@pytest.fixture
def truncating(tmp_path: Path, prepared: Path) -> Path:
    """A tokenizer that truncates to 64 tokens."""
    tokenizer = Tokenizer.from_file(str(prepared / "tokenizer" / "tokenizer.json"))
    tokenizer.enable_truncation(64)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_documents_that_datatrove_has_cut(tmp_path: Path, truncating: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = ["a long text " * 100, "short", "another long one " * 100]
    step = DocumentTokenizer(str(tmp_path / "web"), str(truncating), eos_token="<|endoftext|>")
    step.run(iter([Document(text, str(number)) for number, text in enumerate(texts)]))
    command = [
        "check",
        "+exp=tiny",
        f"data.sources.demo.path={tmp_path}/web",
        "model.vocab_size=500",
        "data.seq_len=16",
    ]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert (
        f"2 of 3 documents of 00000_00000_doc_shuffled.ds end after 64 tokens, and none is longer: {truncating}" in said
    )


def test_whole_documents_of_such_a_tokenizer(tmp_path: Path, truncating: Path) -> None:
    prepare(Request(str(write_texts(tmp_path / "in")), tmp_path / "out", tokenizer=str(truncating)))
    assert truncation_warning(open_source("web", tmp_path / "out"), truncating) is None


def test_without_truncation_or_index(tmp_path: Path, prepared: Path) -> None:
    source = open_source("web", prepared)
    assert truncation_warning(source, prepared / "tokenizer" / "tokenizer.json") is None
    assert truncation_warning(source, None) is None
