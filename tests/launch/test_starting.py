"""What `model.init_from` names is looked at before anything is submitted."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM

from harness.launch.__main__ import main
from harness.model.build import transformers_config
from tests.tiny import VOCAB, tiny_model, write_tokens

FIELDS = {"model_type": "llama", "no_rope_layer_interval": 0, "tie_word_embeddings": False}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = transformers_config(tiny_model(**FIELDS))
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def launched(folder: Path, *overrides: str) -> int:
    tokens = folder.parent / "tokens"
    if not tokens.exists():
        write_tokens(tokens)
    return main(
        ["+exp=tiny", f"runs_dir={folder.parent / 'runs'}", f"data.sources.demo.path={tokens}", "data.eos_token_id=0",
         "data.seq_len=64", f"model.init_from={folder}", f"monitor.targets_dir={folder.parent / 'targets'}", *overrides]
    )  # fmt: skip


def test_the_plan_is_that_of_the_folders_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launched(folder, "dry_run=true") == 0
    said = capsys.readouterr().out
    count = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    assert (
        f"llama, {count / 1000:.2f} k parameters ({count:,};" in said
        and f"from       the weights and config.json of {folder}" in said
    )
    assert "  - " not in said, "nothing stands in the way"


def test_a_truncated_file_is_refused_by_its_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert launched(folder) == 2
    assert f"{file} (" in (said := capsys.readouterr().err) and "is truncated or damaged" in said
    assert launched(folder, "dry_run=true") == 0
    assert f"{file} (" in capsys.readouterr().out


def test_contradictions_are_refused_with_both_values(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launched(folder, "model.rope_theta=5", "model.num_hidden_layers=3") == 2
    said = capsys.readouterr().err
    assert f"model.rope_theta=5.0: model.init_from={folder} has 10000.0 in config.json" in said
    assert f"model.num_hidden_layers=3: model.init_from={folder} has 4 in config.json" in said


def vocabulary(path: Path, *tokens: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    Tokenizer(WordLevel({token: number for number, token in enumerate(tokens)}, unk_token=tokens[0])).save(str(path))
    return path


def test_data_of_another_tokenizer_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = vocabulary(tmp_path / "mine" / "tokenizer.json", "<|endoftext|>", "a", "b")
    vocabulary(folder / "tokenizer.json", "<|endoftext|>", "a", "c", "d")
    assert launched(folder, f"data.tokenizer={mine}", "dry_run=true") == 0
    said = capsys.readouterr().out
    assert (
        f"data.sources.demo: tokenised with {mine}, where 1 ids stand for other text than in {folder}/tokenizer.json"
        in said
    )
    assert "(id 2 is 'b', in model.init_from 'c')" in said
    vocabulary(folder / "tokenizer.json", "<|endoftext|>", "a", "b", "d")
    assert launched(folder, f"data.tokenizer={mine}", "dry_run=true") == 0
    assert "stand for other text" not in capsys.readouterr().out


def test_data_of_a_larger_vocabulary_is_refused_with_where_the_models_comes_from(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "config.json"
    config = transformers_config(tiny_model(**FIELDS, vocab_size=VOCAB - 100))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    assert json.loads(path.read_text())["vocab_size"] == VOCAB - 100
    assert launched(folder) == 2
    said = capsys.readouterr().err
    assert f"model.vocab_size={VOCAB - 100}" in said
    assert (
        f"model.vocab_size={VOCAB - 100} comes from model.init_from={folder}: give data made with that model's tokenizer"
        in said
    )
