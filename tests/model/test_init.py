"""Initial weights must not depend on how many ranks there are or how they divide the model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from harness.config.schema import ModelConfig, ParallelConfig, TrainConfig
from harness.model.build import build_on_meta
from harness.model.init import InitFromError, init_weights, load_weights, own_part
from harness.model.loss import LossModel
from harness.parallel.apply import parallelize
from harness.parallel.mesh import build_mesh, resolve
from tests.ranks import in_ranks
from tests.tiny import tiny_model

QWEN3 = tiny_model(model_type="qwen3", no_rope_layer_interval=0, tie_word_embeddings=False)
CASES = {
    "fsdp2": (2, ParallelConfig(), tiny_model()),
    "tp2": (2, ParallelConfig(tp=2), tiny_model()),
    "fsdp2xtp2": (4, ParallelConfig(tp=2), tiny_model()),
    "hsdp2x2": (4, ParallelConfig(dp_replicate=2), tiny_model()),
    "qwen3-fsdp2xtp2": (4, ParallelConfig(tp=2), QWEN3),
}


def sharded(model: ModelConfig, parallel: ParallelConfig, world_size: int) -> LossModel:
    built = LossModel(build_on_meta(model, "sdpa"))
    parallelize(built, build_mesh(resolve(parallel, world_size), "cpu"), TrainConfig(steps=1, global_batch_size=1))
    built.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in (*built.parameters(), *built.buffers()):
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).fill_(torch.nan)
    return built


def whole(model: ModelConfig, seed: int = 7) -> dict[str, torch.Tensor]:
    """All weights and buffers, made by one process that divides nothing."""
    built = build_on_meta(model, "sdpa").to_empty(device="cpu")
    built.tie_weights()
    init_weights(built, seed)
    return {**dict(built.named_parameters()), **dict(built.named_buffers())}


def _gathered(
    rank: int, world_size: int, model: ModelConfig, parallel: ParallelConfig
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, bytes]]]:
    built = sharded(model, parallel, world_size).lm
    init_weights(built, 7)
    tensors = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    full = {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors.items()}
    local = {
        n: (str(own_part(p)), p.to_local().detach().numpy().tobytes())
        for n, p in built.named_parameters()
        if p.ndim > 1 and isinstance(p, DTensor)
    }
    return full, local


@pytest.mark.parametrize("case", CASES)
def test_every_layout_starts_from_the_same_weights(case: str) -> None:
    world_size, parallel, model = CASES[case]
    expected = whole(model)
    ranks = in_ranks(_gathered, world_size, model, parallel)
    for full, _ in ranks:
        assert full.keys() == expected.keys()
        for name, tensor in full.items():
            assert torch.equal(tensor, expected[name]), name
    # two ranks hold the same numbers of a matrix only where they hold the same part of it
    for name in ranks[0][1]:
        parts = [local[name] for _, local in ranks]
        assert len({part for part, _ in parts}) == len({content for _, content in parts}), name


def test_no_two_matrices_are_alike_and_the_spread_is_right() -> None:
    weights = {name: w for name, w in whole(tiny_model(initializer_range=0.05)).items() if w.ndim > 1}
    contents = {w.detach().numpy().tobytes()[:64] for w in weights.values()}
    assert len(contents) == len(weights)
    for name, w in weights.items():
        assert w.std().item() == pytest.approx(0.05, rel=0.1), name
        assert abs(w.mean().item()) < 0.005, name


def test_seed_decides() -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(whole(tiny_model(), 1)[name], whole(tiny_model(), 1)[name])
    assert not torch.equal(whole(tiny_model(), 1)[name], whole(tiny_model(), 2)[name])


def _loaded(rank: int, world_size: int, model: ModelConfig, folder: Path) -> dict[str, torch.Tensor]:
    built = sharded(model, ParallelConfig(tp=2), world_size).lm
    load_weights(built, folder)
    tensors = {**dict(built.named_parameters()), **dict(built.named_buffers())}
    return {n: (t.full_tensor() if isinstance(t, DTensor) else t).detach().clone() for n, t in tensors.items()}


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_hugging_face_folder_are_loaded_in_parts(tied: bool, tmp_path: Path) -> None:
    model = tiny_model(tie_word_embeddings=tied)
    saved = build_on_meta(model, "sdpa").to_empty(device="cpu")
    saved.tie_weights()
    init_weights(saved, 3)
    saved.save_pretrained(tmp_path, max_shard_size="100KB" if tied else "50GB")
    assert (tmp_path / "model.safetensors.index.json").exists() == tied
    expected = {**dict(saved.named_parameters()), **dict(saved.named_buffers())}
    for full in in_ranks(_loaded, 2, model, tmp_path):
        assert full.keys() == expected.keys()
        for name, tensor in full.items():
            assert torch.equal(tensor, expected[name]), name


def test_tensors_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = build_on_meta(tiny_model(), "sdpa").to_empty(device="cpu")
    model.tie_weights()
    with pytest.raises(InitFromError, match=r"model\.init_from=.*: no model\.safetensors"):
        load_weights(model, tmp_path)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    good = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    bad = {
        f"has no tensor {name}": {k: v for k, v in good.items() if k != name},
        f"{name} has shape": {**good, name: good[name][:5].clone()},
        "has model.surprise": {**good, "model.surprise": torch.zeros(1)},
    }
    for message, tensors in bad.items():
        save_file(tensors, file)
        with pytest.raises(InitFromError, match=message):
            load_weights(model, tmp_path)
