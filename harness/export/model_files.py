"""The files of a Hugging Face model: config, weights in safetensors, generation config."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import StateDictSplit, split_state_dict_into_shards_factory
from safetensors.torch import save_file
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from harness.config.schema import ModelConfig
from harness.export.errors import ExportError
from harness.export.tokenizer import Tokenizer
from harness.export.weights import Weights
from harness.model.build import build_on_meta

SHARD_SIZE = "5GB"
"""Most that one file of weights holds, as the Hugging Face hub has it."""


def described(model: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> PreTrainedModel:
    """The model without weights (on meta), with the config that its folder is to have."""
    built = build_on_meta(model, "sdpa")
    config = built.config
    config.architectures = [type(built).__name__]
    config.dtype = dtype
    config.use_cache = True
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, tokenizer.bos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    return built


def check_shapes(model: PreTrainedModel, weights: Weights) -> None:
    """Raises ExportError naming the first parameter of `model` that is not in `weights` as it should be, or is too many."""
    wanted = {name: parameter.shape for name, parameter in model.named_parameters()}
    found = weights.shapes
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            saved, needed = (list(shapes[name]) if name in shapes else "none" for shapes in (found, wanted))
            raise ExportError(
                f"{weights.folder} is not of this model: {name} has shape {saved} in it and {needed} by config.yaml"
            )


def planned_shards(model: PreTrainedModel, dtype: torch.dtype) -> StateDictSplit:
    """Which tensor goes into which file. Tied weights come once, as transformers stores them."""
    sizes = {name: parameter.numel() * dtype.itemsize for name, parameter in model.named_parameters()}
    return split_state_dict_into_shards_factory(
        sizes,
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=SHARD_SIZE,
    )


def write_configs(model: PreTrainedModel, folder: Path) -> None:
    """config.json, which versions of transformers before 5 read as well, and generation_config.json."""
    model.config.save_pretrained(folder)
    path = folder / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(
        json.dumps({**content, **_older_fields(content)}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    GenerationConfig.from_model_config(model.config).save_pretrained(folder)


def _older_fields(content: Mapping[str, Any]) -> dict[str, Any]:
    """What stood in other places before transformers 5, which takes both."""
    rope = dict(content["rope_parameters"])
    fields: dict[str, Any] = {"torch_dtype": content["dtype"], "rope_theta": rope.pop("rope_theta")}
    if rope["rope_type"] != "default":
        fields["rope_scaling"] = rope
    if rope["rope_type"] == "longrope":
        fields["original_max_position_embeddings"] = rope["original_max_position_embeddings"]
    return fields


def write_weights(shards: StateDictSplit, weights: Weights, dtype: torch.dtype, folder: Path) -> None:
    """The files of `shards`, and their index where there are several. Holds one file's tensors in memory at a time."""
    with tqdm(total=shards.metadata["total_size"], desc="writing weights", unit="B", unit_scale=True) as progress:
        for name, tensors in shards.filename_to_tensors.items():
            save_file(dict(_converted(weights, tensors, dtype, progress)), folder / name, metadata={"format": "pt"})
            _sync(folder / name)
    if shards.is_sharded:
        index: Mapping[str, object] = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _converted(
    weights: Weights, names: list[str], dtype: torch.dtype, progress: tqdm
) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in weights.read(names):
        converted = tensor.to(dtype)
        progress.update(converted.numel() * dtype.itemsize)
        yield name, converted


def _sync(path: Path) -> None:
    with open(path, "rb") as f:
        os.fsync(f.fileno())
