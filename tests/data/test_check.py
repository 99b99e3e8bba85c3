import subprocess
import sys
from pathlib import Path

import pytest

from harness.config.schema import DataConfig, Packing, SourceConfig
from harness.data.check import check_sources, find_tokenizer, resolve_eos
from harness.data.errors import DataError
from harness.data.token_files import open_source
from tests.data.conftest import data_config, write_token_file
from tests.data.test_tokenizer_files import write_tokenizer


def test_sound_data_has_no_problems(prepared: Path) -> None:
    data = data_config({"web": prepared}, seq_len=128)
    assert check_sources(data, vocab_size=500) == []
    source = open_source("web", prepared)
    assert find_tokenizer(data, source) == prepared / "tokenizer" / "tokenizer.json"
    assert resolve_eos(data, [source]) == 0


def test_tells_everything_at_once(tmp_path: Path, prepared: Path) -> None:
    write_token_file(tmp_path / "short", [[1, 2, 0]])
    problems = check_sources(
        data_config({"gone": tmp_path / "gone", "short": tmp_path / "short", "web": prepared}, seq_len=128), 400
    )
    text = "\n".join(problems)
    assert len(problems) == 4, text
    assert f"data.sources.gone.path={tmp_path}/gone does not exist" in text
    assert f"data.sources.short.path={tmp_path}/short holds no sample of data.seq_len=128" in text
    assert f"model.vocab_size=400: the tokenizer {prepared}/tokenizer/tokenizer.json has 500 tokens" in text
    assert f"data.sources.web.path={prepared}: " in text and "but model.vocab_size=400" in text


def test_no_sources_is_for_the_config_to_say() -> None:
    assert check_sources(DataConfig(), 400) == []


@pytest.mark.parametrize("place", [0, 100_000, 199_990])
def test_finds_tokens_outside_the_vocabulary(tmp_path: Path, place: int) -> None:
    tokens = [7] * 200_000
    tokens[place] = 999
    write_token_file(tmp_path / "web", [[*tokens, 0]], "shard.ds")
    problems = check_sources(data_config({"web": tmp_path / "web"}, seq_len=128, eos_token_id=0), 500)
    assert len(problems) == 1 and "shard.ds holds token 999, but model.vocab_size=500" in problems[0]


def test_wrong_end_of_document(tmp_path: Path) -> None:
    write_token_file(tmp_path / "web", [[5, 6, 7, 3]] * 40)
    problems = check_sources(data_config({"web": tmp_path / "web"}, seq_len=16, eos_token_id=2), 100)
    assert len(problems) == 1
    assert problems[0].startswith("data.eos_token_id=2: no document looked at in data.sources.web.path=")
    assert "they end with 3" in problems[0]
    assert check_sources(data_config({"web": tmp_path / "web"}, seq_len=16, eos_token_id=3), 100) == []


def test_document_mask_needs_the_end_of_document(tmp_path: Path) -> None:
    write_token_file(tmp_path / "web", [[5, 6, 7, 3]] * 40)
    problems = check_sources(data_config({"web": tmp_path / "web"}, seq_len=16), 100)
    assert len(problems) == 1 and problems[0].startswith("data.eos_token_id=null: data.document_mask=true needs")
    assert check_sources(data_config({"web": tmp_path / "web"}, seq_len=16, document_mask=False), 100) == []
    with pytest.raises(DataError, match=r"Set data\.eos_token_id, or data\.tokenizer"):
        resolve_eos(data_config({"web": tmp_path / "web"}), [open_source("web", tmp_path / "web")])


def test_named_tokenizer(tmp_path: Path, prepared: Path) -> None:
    data = data_config({"web": prepared}, seq_len=128, tokenizer=str(tmp_path / "none"))
    problems = check_sources(data, 500)
    assert f"data.tokenizer={tmp_path}/none: no tokenizer.json there" in problems[0]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{}")
    data = data_config({"web": prepared}, seq_len=128, tokenizer=str(tmp_path / "bad"))
    assert any("is not a tokenizer.json" in problem for problem in check_sources(data, 500))


def test_sources_of_tokenizers_with_different_added_tokens(tmp_path: Path) -> None:
    for name, token in (("web", "<think>"), ("code", "<tool>")):
        write_token_file(tmp_path / name, [[1, 2, 0]] * 100, tokenizer="tokenizer/tokenizer.json")
        added = [{"id": 2, "content": token}]
        write_tokenizer(tmp_path / name / "tokenizer", {"<|endoftext|>": 0, "a": 1}, added)
    data = data_config({name: tmp_path / name for name in ("web", "code")}, seq_len=128)
    [problem] = check_sources(data, 3)
    assert "different added tokens: 2 is '<think>' in" in problem and "and '<tool>' in" in problem


def test_sources_of_different_tokenizers(tmp_path: Path, prepared: Path) -> None:
    write_token_file(tmp_path / "code", [[1, 2, 0]] * 100, tokenizer="tokenizer/tokenizer.json")
    write_tokenizer(tmp_path / "code" / "tokenizer", {"<|endoftext|>": 0, "a": 1})
    problems = check_sources(data_config({"web": prepared, "code": tmp_path / "code"}, seq_len=128), 500)
    assert len(problems) == 1 and "data.sources were tokenised with different tokenizers" in problems[0]
    data = data_config({"web": prepared}, seq_len=128, tokenizer=str(tmp_path / "code" / "tokenizer"))
    assert any("different tokenizers" in problem for problem in check_sources(data, 500))


def test_held_out_files_are_looked_at_too(tmp_path: Path, prepared: Path) -> None:
    write_token_file(tmp_path / "held", [[5, 6, 7, 99, 0]] * 40, tokenizer=None)
    data = data_config({"web": prepared}, seq_len=16)
    data.validation = {"gone": SourceConfig(path=str(tmp_path / "gone")), "held": SourceConfig(str(tmp_path / "held"))}
    problems = check_sources(data, 500)
    assert len(problems) == 1 and problems[0].startswith(f"data.validation.gone.path={tmp_path}/gone does not exist")
    del data.validation["gone"]
    assert check_sources(data, 500, eval_sequences=12) == []
    (problem,) = check_sources(data, 500, eval_sequences=13)
    assert problem.startswith(
        "train.eval_sequences=13: data.validation holds 12 sequences of data.seq_len=16 (held 12)"
    )
    write_token_file(tmp_path / "held", [[5, 6, 7, 999, 0]] * 40, tokenizer=None)
    (problem,) = check_sources(data, 500)
    assert problem.startswith(f"data.validation.held.path={tmp_path}/held: ") and "holds token 999" in problem


def test_held_out_files_that_are_trained_on(tmp_path: Path, prepared: Path) -> None:
    first = min(prepared.glob("*.ds"))
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "link.ds").symlink_to(first)
    for path in (prepared, first, tmp_path / "held"):  # the folder, a file in it, a link to that
        data = data_config({"web": prepared}, seq_len=16)
        data.validation = {"held": SourceConfig(path=str(path))}
        problems = check_sources(data, 500)
        assert len(problems) == 1, problems
        assert problems[0].startswith(f"data.validation.held.path={path}: the run trains on these files")
        assert f"data.sources.web.path={prepared}" in problems[0]


def test_checks_need_no_heavy_library(prepared: Path) -> None:
    program = f"""
import sys
from harness.config.schema import DataConfig, Packing, SourceConfig, StageConfig
from harness.data.check import check_sources
from harness.data.order import SampleOrder, repeats
from harness.data.windows import open_sources
import harness.data.loader, harness.data.preparation.command, harness.data.__main__, harness.data.held_out, harness.data.skips
data = DataConfig(seq_len=64, sources={{"web": SourceConfig({str(prepared)!r})}}, stages=[StageConfig(weights={{"web": 1}})])
assert check_sources(data, 500) == []
sources = open_sources([("web", {str(prepared)!r})], 64)
repeats(SampleOrder(sources, data.stages, seed=0, seq_len=64, global_batch_size=8), 100)
heavy = {{"torch", "datasets", "datatrove", "tokenizers", "transformers", "pyarrow", "huggingface_hub"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_packing_needs_the_index_of_what_is_trained_on(tmp_path: Path) -> None:
    write_token_file(tmp_path / "web", [[5, 6, 7, 3]] * 4, index=False)
    write_token_file(tmp_path / "held", [[8, 6, 7, 3]] * 40, index=False)
    data = data_config({"web": tmp_path / "web"}, seq_len=32, eos_token_id=3, packing=Packing.best_fit)
    data.validation = {"held": SourceConfig(path=str(tmp_path / "held"))}
    (problem,) = check_sources(data, 100, 2)
    assert problem.startswith(f"data.sources.web.path={tmp_path / 'web'}: 00000_00000_shuffled.ds.index is missing")
    write_token_file(tmp_path / "web", [[5, 6, 7, 3]] * 4)
    assert check_sources(data, 100, 2) == [], "16 tokens are too few for chunks, not for packing"
