"""Weights of a Hugging Face folder reach the model whole, or the file or tensor that is wrong is named."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config.schema import ModelConfig
from harness.model.build import build_on_meta
from harness.model.init import init_weights
from harness.model.load import InitFromError, load_weights, weight_problems
from harness.model.stage import build_stage
from harness.model.token_loss import TokenLoss
from harness.parallel.timetable import layers_of_stages
from tests.model.test_init import grid, own_part_of, tensors_of, whole
from tests.ranks import in_ranks
from tests.tiny import tiny_model


def _loaded(rank: int, world_size: int, model: ModelConfig, folder: Path) -> dict[str, torch.Tensor]:
    stages = own_part_of(model, grid(pp=2, tp=2), rank, 1)
    for stage in stages:
        load_weights(stage, folder)
    return tensors_of(stages)


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_hugging_face_folder_are_loaded_in_parts(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    saved = build_on_meta(model, "sdpa").to_empty(device="cpu")
    saved.tie_weights()
    stage = whole(model)
    init_weights(stage, 3)
    saved.load_state_dict(stage.lm.state_dict())
    saved.save_pretrained(tmp_path, max_shard_size="100KB" if tied else "50GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == tied
    expected = tensors_of([stage])
    ranks = in_ranks(_loaded, 4, model, tmp_path)
    assert {name for full in ranks for name in full} == expected.keys()
    for full in ranks:
        for name, tensor in full.items():
            assert torch.equal(tensor, expected[name]), name


def test_tensors_that_do_not_fit_are_named_in_every_stage(tmp_path: Path) -> None:
    model = tiny_model()
    stages = [
        build_stage(model, "sdpa", layers, TokenLoss(z_loss=0.0) if layers.stop == 4 else None).to_empty(device="cpu")
        for layers in layers_of_stages(4, 2)
    ]
    for stage in stages:
        with pytest.raises(InitFromError, match=r"model\.init_from=.* has no model\.safetensors"):
            load_weights(stage, tmp_path)
    build_on_meta(model, "sdpa").to_empty(device="cpu").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    bad = {
        f"does not have {name}": {k: v for k, v in good.items() if k != name},
        f"{name} has shape": {**good, name: good[name][:5].clone()},
        "has model.surprise, which this model does not have": {**good, "model.surprise": torch.zeros(1)},
    }
    for message, tensors in bad.items():
        save_file(tensors, file)
        for stage in stages:
            with pytest.raises(InitFromError, match=message):
                load_weights(stage, tmp_path)


def test_a_stored_copy_of_a_tied_head_is_left_aside(tmp_path: Path) -> None:
    stage = whole(tiny_model())
    init_weights(stage, 3)
    save_file({n: t.clone() for n, t in stage.lm.state_dict().items()}, tmp_path / "model.safetensors")
    assert (tmp_path / "model.safetensors").exists()
    expected = tensors_of([stage])
    init_weights(stage, 4)
    load_weights(stage, tmp_path)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors_of([stage]).items())


UP = "model.layers.1.mlp.up_proj.weight"


def saved(folder: Path, *, shards: bool = False, **changes: object) -> ModelConfig:
    """A folder with weights, and the model that starts from it."""
    model = tiny_model(init_from=str(folder), **changes)
    built = build_on_meta(model, "sdpa").to_empty(device="cpu")
    built.tie_weights()
    with torch.no_grad():
        for number, parameter in enumerate(built.parameters()):
            parameter.fill_(number / 7)
    built.save_pretrained(folder, max_shard_size="100KB" if shards else "50GB")
    return model


def only_problem(model: ModelConfig) -> str:
    (problem,) = weight_problems(model)
    assert problem.startswith(f"model.init_from={model.init_from}: ")
    return problem


def test_whole_weights_are_no_problem(tmp_path: Path) -> None:
    assert weight_problems(saved(tmp_path / "one")) == []
    assert weight_problems(saved(tmp_path / "shards", shards=True, tie_word_embeddings=False)) == []


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("keep", [0.0, 0.01, 0.5, 0.999])
def test_a_file_that_was_cut_off_is_named(shards: bool, keep: float, tmp_path: Path) -> None:
    model = saved(tmp_path, shards=shards)
    file = sorted(tmp_path.glob("*.safetensors"))[-1]
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])
    assert f"{file} ({int(keep * len(content)):,} bytes) is truncated or damaged" in only_problem(model)


def test_an_index_that_does_not_fit_its_files_is_named(tmp_path: Path) -> None:
    model = saved(tmp_path / "whole", shards=True)
    first = sorted((tmp_path / "whole").glob("*.safetensors"))[0].name

    def broken(name: str) -> tuple[Path, ModelConfig]:
        shutil.copytree(tmp_path / "whole", tmp_path / name)
        return tmp_path / name, tiny_model(init_from=str(tmp_path / name))

    folder, model = broken("missing")
    (folder / first).unlink()
    assert f"{folder / first} is missing (1 of " in only_problem(model)
    for name, content in (("cut", '{"weight_map": {"a'), ("other", "[]"), ("without", '{"metadata": {}}')):
        folder, model = broken(name)
        (folder / "model.safetensors.index.json").write_text(content)
        assert "model.safetensors.index.json: not an index of safetensors files" in only_problem(model)
    folder, model = broken("elsewhere")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], first)
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert f"{folder / first}: model.safetensors.index.json says that" in only_problem(model)


def test_folders_without_readable_weights_say_what_they_have(tmp_path: Path) -> None:
    for files, message in (
        (["pytorch_model.bin"], "has weights as pytorch_model.bin only: pickles can run code and are not read"),
        (
            ["model-00001-of-00002.safetensors"],
            "it has model-00001-of-00002.safetensors, but no model.safetensors.index.json",
        ),
        ([], "has no model.safetensors or model.safetensors.index.json: copy the weights"),
    ):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        for file in files:
            (folder / file).touch()
        assert message in only_problem(tiny_model(init_from=str(folder)))


def test_one_file_goes_before_an_index_as_in_transformers(tmp_path: Path) -> None:
    model = saved(tmp_path, shards=True)
    saved(tmp_path / "one")
    shutil.copy(tmp_path / "one" / "model.safetensors", tmp_path)
    for shard in tmp_path.glob("model-*.safetensors"):
        shard.unlink()
    assert weight_problems(model) == []


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({**tensors, UP: tensors[UP].to(torch.float8_e4m3fn)}, file)
    assert f"{UP} is stored as F8_E4M3: expected weights in" in only_problem(model)


def test_all_that_does_not_fit_is_told_at_once(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.norm.weight"]
    save_file({**tensors, UP: tensors[UP][:5].clone(), "score.weight": torch.zeros(2, 2)}, file)
    problem = only_problem(model)
    assert "has score.weight, which this model does not have; does not have model.norm.weight; " in problem
    assert f"{UP} has shape [5, 64], expected [96, 64]" in problem


def test_buffers_of_old_checkpoints_are_passed_over(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    old = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in range(4)}
    more = {"model.rotary_emb.inv_freq": torch.ones(8), "model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(8)}
    save_file({**load_file(file), **old, **more}, file)
    assert weight_problems(model) == []
    load_weights(whole(model), tmp_path)


def test_a_tied_head_may_be_stored_as_long_as_it_is_the_embedding(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors["model.embed_tokens.weight"]
    save_file({**tensors, "lm_head.weight": embedding.clone()}, file)
    assert weight_problems(model) == []
    save_file({**tensors, "lm_head.weight": embedding + 1}, file)
    assert (
        "tie_word_embeddings is true, but lm_head.weight and model.embed_tokens.weight in its files differ"
        in only_problem(model)
    )


def test_a_tied_weight_that_is_stored_as_the_head_alone_is_found(tmp_path: Path) -> None:
    model = saved(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file({**tensors, "lm_head.weight": embedding}, file)
    assert weight_problems(model) == []
    stage = whole(model)
    load_weights(stage, tmp_path)
    assert torch.equal(stage.weights()["model.embed_tokens.weight"], embedding)


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    saved(tmp_path)
    assert "does not have lm_head.weight" in only_problem(
        tiny_model(init_from=str(tmp_path), tie_word_embeddings=False)
    )
