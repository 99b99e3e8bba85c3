"""What `python -m harness.export` writes must be the run's model, and nothing where it can't."""

import dataclasses
import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import ByteLevel as ByteLevelProcessor
from tokenizers.processors import Sequence, TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.checkpoint.folders import complete_path
from harness.config.schema import ModelConfig, SourceConfig
from harness.data.loader import Loader
from harness.export import comparison, export, model_files, weights
from harness.export import tokenizer as tokenizers
from harness.export.__main__ import main
from harness.model.build import transformers_config
from harness.model.folder_config import read_folder_config
from harness.model.load import load_weights
from harness.run.folder import RunFolder
from harness.train.setup import open_data
from tests.data.conftest import write_token_file
from tests.export.saved import saved_run, whole
from tests.ranks import exit_codes, start_trainers
from tests.tiny import END, VOCAB, losses, tiny_model, tiny_run

QWEN3 = {f"model__{k}": v for k, v in vars(tiny_model(model_type="qwen3", no_rope_layer_interval=0)).items()}
TOKENS = torch.randint(1, VOCAB, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with checkpoints of steps 3 and 6 and a moving average. Tests must leave it as it is."""
    return saved_run(tmp_path_factory.mktemp("runs"), steps=(3, 6), ema=True)


def logits(folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        return model(TOKENS).logits


def expected_logits(run: RunFolder, factor: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of the run's first weights times `factor`, rounded to `dtype`."""
    config = run.load_config().model
    model = AutoModelForCausalLM.from_config(transformers_config(config))
    values = {name: (tensor * factor).to(dtype) for name, tensor in whole(config).weights().items()}
    model.load_state_dict(values, strict=not config.tie_word_embeddings)
    with torch.no_grad():
        return model(TOKENS).logits


LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "alone": (1, {}),
    "fsdp2xtp2": (4, {"parallel__tp": 2, "model__tie_word_embeddings": False}),
    "pp2xfsdp2": (4, {"parallel__pp": 2}),
    "hsdp2x2-qwen3": (4, {"parallel__dp_replicate": 2, **QWEN3}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_transformers_computes_what_the_run_computes(layout: str, tmp_path: Path) -> None:
    ranks, changes = LAYOUTS[layout]
    run = saved_run(tmp_path, ranks=ranks, **changes)
    assert main([str(run.path), "--dtype", "float32"]) == 0
    exported = run.path / "export" / "step-00000006"
    assert torch.equal(logits(exported), expected_logits(run, 6))
    # and back again
    stage = whole(run.load_config().model)
    first = {name: parameter.detach().clone() for name, parameter in stage.weights().items()}
    load_weights(stage, exported)
    for name, parameter in stage.weights().items():
        assert torch.equal(parameter, first[name] * 6), name


def test_the_loss_of_a_real_run_goes_on_in_transformers(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, steps=3, checkpoint__every_steps=2, data__document_mask=False, parallel__tp=2)
    assert exit_codes(start_trainers(run.path, 2, tmp_path)) == [0, 0], (tmp_path / "rank-0.log").read_text()
    assert main([str(run.path), "--step", "2", "--dtype", "float32"]) == 0
    model = AutoModelForCausalLM.from_pretrained(run.path / "export" / "step-00000002", dtype=torch.float32)
    config = run.load_config()
    data = open_data(config)
    batch = {"global_batch_size": 8, "micro_batch_size": 8, "dp_rank": 0, "dp_size": 1, "seq_len": config.data.seq_len}
    with Loader(
        data.sources, data.order, start_step=2, eos_token_id=data.eos_token_id, document_mask=False, **batch
    ) as loader:
        (micro,) = next(loader).micro_batches
    with torch.no_grad():
        found = model(torch.from_numpy(micro.input_ids).long()).logits.flatten(0, 1)
    loss = torch.nn.functional.cross_entropy(found, torch.from_numpy(micro.labels).long().flatten())
    assert loss.item() == pytest.approx(losses(run)[3], rel=1e-6)


def test_step_average_and_number_format(run: RunFolder, tmp_path: Path) -> None:
    arguments = [run.name, "--runs-dir", str(run.path.parent), "--step", "3", "--ema"]
    assert main([*arguments, "--output", str(tmp_path / "deep" / "out")]) == 0
    out = tmp_path / "deep" / "out"
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    assert torch.equal(logits(out), expected_logits(run, 1.5, torch.bfloat16))


def test_large_models_come_in_several_files(run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "SHARD_SIZE", "100KB")
    monkeypatch.setattr(weights, "READ_BYTES", 50_000)
    out = tmp_path / "out"
    assert main([str(run.path), "--output", str(out), "--dtype", "float32"]) == 0
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert all((out / name).stat().st_size < 110_000 for name in files)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert {file: sorted(load_file(out / file)) for file in files} == {
        file: sorted(name for name, where in index["weight_map"].items() if where == file) for file in files
    }
    assert torch.equal(logits(out), expected_logits(run, 6))


def test_the_folder_says_what_it_is(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir(mode=0o755)  # an empty folder is as good as none
    assert main([str(run.path), "--output", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == str(out) and "no tokenizer was put in" in said and "--tokenizer DIR" in said
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["SmolLM3ForCausalLM"] and config["dtype"] == "bfloat16"
    assert config["no_rope_layers"] == [1, 1, 1, 0] and config["use_cache"] and config["tie_word_embeddings"]
    assert (config["eos_token_id"], config["pad_token_id"]) == (END, None)
    generation = json.loads((out / "generation_config.json").read_text())
    assert generation["eos_token_id"] == END
    card = (out / "README.md").read_text()
    for fact in ("# run, step 6", "| step | 6 of 8 |", "| tokens | 6,000 |", "| config hash |", "| data | web |"):
        assert fact in card, card
    assert AutoModelForCausalLM.from_pretrained(out).generate(TOKENS, max_new_tokens=3).shape[1] <= 27
    assert out.stat().st_mode & 0o777 == 0o755


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare tokenizer.json of 273 tokens."""
    trained = Tokenizer(BPE())
    trained.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trained.decoder = ByteLevelDecoder()
    specials = ["<pad>", "<|endoftext|>"]
    trainer = BpeTrainer(vocab_size=273, special_tokens=specials, initial_alphabet=ByteLevel.alphabet())
    trained.train_from_iterator(["bade gode mina sotu " * 20], trainer, 1)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    trained.save(str(path))
    return path


@pytest.mark.parametrize("model_type", ["smollm3", "llama", "mistral", "qwen3"])
def test_the_tokenizer_behind_the_data_comes_along(model_type: str, tokenizer: Path, tmp_path: Path) -> None:
    no_nope = {} if model_type == "smollm3" else {"model__no_rope_layer_interval": 0}
    run = saved_run(tmp_path, model__vocab_size=300, model__model_type=model_type, **no_nope)
    config = run.load_config()
    source = write_token_file(tmp_path / "data", [[5] * 200], tokenizer=str(tokenizer))
    config.data.eos_token_id, config.data.sources = None, {"web": SourceConfig(path=str(source))}
    run.save_config(config)
    assert main([str(run.path)]) == 0
    out = run.path / "export" / "step-00000006"
    copied = AutoTokenizer.from_pretrained(out)
    text = "Töne, bade  gode!"
    assert copied(text)["input_ids"] == Tokenizer.from_file(str(tokenizer)).encode(text).ids
    assert copied.decode(copied(text)["input_ids"]) == text
    assert json.loads((out / "config.json").read_text())["eos_token_id"] == copied.eos_token_id == 1


def test_the_tokenizer_that_is_given_comes_first(run: RunFolder, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    shutil.copy(tokenizer, folder)
    special = {
        "eos_token": "<pad>",
        "pad_token": {"__type": "AddedToken", "content": "<|endoftext|>"},
        "model_max_length": 77,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(special))
    wide = saved_run(tmp_path, name="wide", model__vocab_size=512, data__tokenizer=str(tokenizer))
    assert main([str(wide.path), "--tokenizer", str(folder)]) == 0
    out = wide.path / "export" / "step-00000006"
    config = json.loads((out / "config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"], config["bos_token_id"]) == (END, 1, None)
    assert AutoTokenizer.from_pretrained(out).model_max_length == 77


BEGIN = "<|begin|>"


def with_begin(tokenizer: Path, folder: Path) -> Path:
    """The tokenizer with a token 273 that its post-processor puts before each text, limits for inference, and templates."""
    folder.mkdir()
    library = Tokenizer.from_file(str(tokenizer))
    library.add_special_tokens([AddedToken(BEGIN, special=True)])
    template = TemplateProcessing(
        single=f"{BEGIN} $A <|endoftext|>",
        special_tokens=[(BEGIN, 273), ("<|endoftext|>", library.token_to_id("<|endoftext|>"))],
    )
    library.post_processor = Sequence([ByteLevelProcessor(trim_offsets=False), template])
    library.enable_truncation(4)
    library.enable_padding(length=40)
    library.save(str(folder / "tokenizer.json"))
    config = {
        "bos_token": BEGIN,
        "eos_token": "<|endoftext|>",
        "add_bos_token": True,
        "tokenizer_class": "LlamaTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}|{% endfor %}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    return folder


@pytest.mark.parametrize("begins", [False, True])
def test_the_tokenizer_does_what_the_training_data_has(
    begins: bool, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_begin(tokenizer, tmp_path / "tokenizer")
    run = saved_run(tmp_path, model__vocab_size=300)
    config = run.load_config()
    documents = [[*([273] if begins else []), 5, 6, 7, 1]] * 80
    source = write_token_file(tmp_path / "data", documents, tokenizer=str(folder / "tokenizer.json"))
    config.data.eos_token_id, config.data.sources = None, {"web": SourceConfig(path=str(source))}
    run.save_config(config)
    assert main([str(run.path)]) == 0
    said = "begin with <|begin|>: the tokenizer in the folder adds it"
    if not begins:
        said = "do not begin with <|begin|>: the tokenizer in the folder does not add it"
    assert said in capsys.readouterr().out
    out = run.path / "export" / "step-00000006"
    copied = AutoTokenizer.from_pretrained(out)
    text = "bade gode mina sotu bade gode"
    bare = Tokenizer.from_file(str(tokenizer)).encode(text).ids
    assert copied(text)["input_ids"] == [*([273] if begins else []), *bare] and len(bare) > 4
    assert json.loads((out / "config.json").read_text())["bos_token_id"] == (273 if begins else None)
    assert copied.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False) == "hi|"
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "tools"


def test_a_tokenizer_that_transformers_would_use_otherwise_is_told(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = saved_run(tmp_path, model__vocab_size=300, data__tokenizer=str(tokenizer))
    real = tokenizers.as_in_training
    lower = {"type": "Lowercase"}
    monkeypatch.setattr(tokenizers, "as_in_training", lambda *given: {**real(*given), "normalizer": lower})
    assert main([str(run.path)]) == 0
    assert "the tokenizer in the folder cuts 'Two words' into " in capsys.readouterr().out


def test_data_that_is_gone_leaves_the_beginning_as_the_tokenizer_has_it(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = with_begin(tokenizer, tmp_path / "tokenizer")
    run = saved_run(tmp_path, model__vocab_size=300, data__tokenizer=str(folder))
    shutil.rmtree(tmp_path / "tokens")
    assert main([str(run.path)]) == 0
    assert "whether its documents begin with <|begin|> is not known" in capsys.readouterr().out
    copied = AutoTokenizer.from_pretrained(run.path / "export" / "step-00000006")
    assert copied("bade")["input_ids"][0] == 273 and copied("bade")["input_ids"][-1] != 1


SCALED: dict[str, dict[str, Any]] = {
    "llama3": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
    "longrope": {
        "rope_type": "longrope", "factor": 8.0, "original_max_position_embeddings": 32,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    },
    "default": {},
}  # fmt: skip


@pytest.mark.parametrize("kind", SCALED)
def test_what_changes_the_function_is_in_the_config_for_new_and_old_transformers(kind: str, tmp_path: Path) -> None:
    run = saved_run(
        tmp_path, model__model_type="llama", model__no_rope_layer_interval=0, model__rope_scaling=SCALED[kind],
        model__rope_theta=500000.0, model__rms_norm_eps=1e-3, model__attention_bias=True, model__hidden_act="gelu",
    )  # fmt: skip
    assert main([str(run.path), "--dtype", "float32"]) == 0
    out = run.path / "export" / "step-00000006"
    content = json.loads((out / "config.json").read_text())
    assert content["rope_theta"] == content["rope_parameters"]["rope_theta"] == 500000.0
    assert content.get("rope_scaling", {}) == SCALED[kind]
    assert content["torch_dtype"] == content["dtype"] == "float32"
    assert (content.get("original_max_position_embeddings") == 32) == (kind == "longrope")
    assert torch.equal(logits(out), expected_logits(run, 6))
    trained = run.load_config().model
    assert ModelConfig(**read_folder_config(out).keys) == dataclasses.replace(trained, head_dim=16)


def test_an_export_that_computes_something_else_is_refused(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(model: Any, folder: Path) -> None:
        model.config.rms_norm_eps = 0.1
        model_files.write_configs(model, folder)

    monkeypatch.setattr(export, "write_configs", wrong)
    said = fails(capsys, str(run.path), "--output", str(tmp_path / "out"))
    assert "plain transformers computes something else with the exported model than the run does" in said
    assert "logits of 64 tokens differ by" in said
    assert not any(tmp_path.iterdir())


def test_without_room_to_compare_the_export_says_so(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "available_bytes", lambda: 1000)
    assert main([str(run.path), "--output", str(tmp_path / "out")]) == 0
    assert "not compared with transformers: that takes " in capsys.readouterr().out


def test_a_tokenizer_that_the_model_has_no_rows_for(
    run: RunFolder, tokenizer: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = fails(capsys, str(run.path), "--tokenizer", str(tokenizer))
    assert "has 273 tokens" in said and "model.vocab_size=256" in said


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capsys.readouterr().err


def test_what_does_not_exist_is_named_with_what_does(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = ["--runs-dir", str(run.path.parent)]
    assert "nosuch: no such run" in (said := fails(capsys, "nosuch", *runs)) and "there are run" in said
    assert "is not a run folder: it has no config.yaml" in fails(capsys, str(tmp_path))
    assert "there are 3, 6" in fails(capsys, "run", *runs, "--step", "4")
    assert "no tokenizer.json there" in fails(capsys, "run", *runs, "--tokenizer", str(tmp_path))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    assert "exists already" in fails(capsys, "run", *runs, "--output", str(tmp_path / "full"))
    assert not (run.path / "export").exists()


def test_checkpoints_that_can_not_be_used(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, broken.path)
    folder = complete_path(broken.checkpoints_dir, 6)
    file = folder / "__0_0.distcp"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert "__0_0.distcp is damaged" in (said := fails(capsys, str(broken.path))) and "--step 3" in said
    file.write_bytes(content)
    config = broken.load_config()
    config.model.rope_theta = 777.0
    broken.save_config(config)
    assert "model.rope_theta: 10000.0 in the checkpoint, 777.0 now" in fails(capsys, str(broken.path))
    shutil.rmtree(broken.checkpoints_dir)
    assert "has no complete checkpoint" in fails(capsys, str(broken.path))
    assert not (broken.path / "export").exists()


def test_without_a_moving_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = saved_run(tmp_path)
    assert "optim.ema_decay" in fails(capsys, str(run.path), "--ema")


def test_a_full_disk_leaves_nothing(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        said = fails(capsys, str(run.path), "--output", str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'out'} could not be written" in said
    assert not any(tmp_path.iterdir())


def test_space_is_checked_before_anything_is_written(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))  # type: ignore[attr-defined]
    said = fails(capsys, str(run.path), "--output", str(tmp_path / "out"))
    assert "needs 279.7 kB, and the file system has 1.0 kB left" in said
    assert not any(tmp_path.iterdir())


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from harness.export.__main__ import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    done = subprocess.run([sys.executable, "-c", f"{code}assert 'torch' not in sys.modules"], check=False)
    assert done.returncode == 0
