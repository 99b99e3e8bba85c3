"""Gives a model the weights of a Hugging Face folder: `model.init_from`."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from harness.config.schema import ModelConfig
from harness.model.build import build_on_meta
from harness.model.init import init_buffers
from harness.model.stage import TIED_HEAD, Stage
from harness.model.weight_files import StoredTensor, WeightFilesError, stored_tensors
from harness.parallel.local import local, own_part

MOST_NAMED = 5
"""Tensors that one sentence names."""
COMPARED_ROWS = 4096


class InitFromError(ValueError):
    """`model.init_from` does not hold the weights of this model; the message names the tensor or file."""


@torch.no_grad()
def load_weights(stage: Stage, folder: Path) -> None:
    """Fill `stage` from the safetensors files of a Hugging Face model, reading only this rank's parts.

    Raises InitFromError if a tensor of the model (of whichever stage, so that all ranks raise alike) is missing, too
    many or of another shape.
    """
    init_buffers(stage)
    with torch.device("meta"):
        whole = type(stage.lm)(stage.lm.config)
    sources = _sources(whole, folder)
    for name, parameter in stage.weights().items():
        stored, source = sources[name]
        with safe_open(stored.file, framework="pt") as opened:
            local(parameter).copy_(opened.get_slice(source)[own_part(parameter)])


def weight_problems(model: ModelConfig) -> list[str]:
    """Why the weights of `model.init_from` are not those of this model: one sentence per problem.

    Reads headers, and the embedding and head if both are stored although they are tied. Takes seconds to import."""
    assert model.init_from is not None
    folder = Path(model.init_from).expanduser()
    if not folder.exists():
        return [
            f"model.init_from={folder}: no such folder; give one with config.json and safetensors (models are not downloaded)"
        ]
    whole = build_on_meta(model, "sdpa")
    try:
        _sources(whole, folder)
        if model.tie_word_embeddings and (problem := _tied_apart(folder)):
            return [f"model.init_from={folder}: {problem}"]
    except InitFromError as error:
        return [str(error)]
    return []


def _sources(whole: PreTrainedModel, folder: Path) -> dict[str, tuple[StoredTensor, str]]:
    """Parameter's name -> the stored tensor with its values, and the name of that. Raises InitFromError."""
    try:
        stored = stored_tensors(folder)
    except WeightFilesError as error:
        raise InitFromError(f"model.init_from={folder}: {error}") from error
    wanted = {name: tuple(parameter.shape) for name, parameter in whole.named_parameters()}
    names = {name: name for name in wanted}
    head, embedding = TIED_HEAD
    tied = head not in wanted
    if tied and embedding not in stored and head in stored:
        names[embedding] = head
    # a tied output head is no parameter of its own, but may be stored
    unknown = sorted(set(stored) - set(names.values()) - ({head} if tied else set()))
    missing = sorted(name for name, source in names.items() if source not in stored)
    problems = []
    if unknown:
        problems.append(f"has {_listed(unknown)}, which this model does not have")
    if missing:
        problems.append(f"does not have {_listed(missing)}")
    shapes = {name: stored[source].shape for name, source in names.items() if source in stored}
    wrong = [name for name in sorted(shapes) if shapes[name] != wanted[name]]
    if wrong:
        name = wrong[0]
        problems.append(f"{name} has shape {list(shapes[name])}, expected {list(wanted[name])}")
    if problems:
        raise InitFromError(f"model.init_from={folder}: {'; '.join(problems)}. Check model.* and config.json")
    return {name: (stored[source], source) for name, source in names.items()}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - MOST_NAMED} more tensors" if len(names) > MOST_NAMED else ""
    return ", ".join(names[:MOST_NAMED]) + more


def _tied_apart(folder: Path) -> str | None:
    """Says so if embedding and head are both stored and differ: transformers would not tie them."""
    stored: Mapping[str, StoredTensor] = stored_tensors(folder)
    if not all(name in stored for name in TIED_HEAD):
        return None
    head, embedding = (stored[name] for name in TIED_HEAD)
    alike = head.shape == embedding.shape
    if alike:
        with safe_open(head.file, framework="pt") as one, safe_open(embedding.file, framework="pt") as other:
            left, right = one.get_slice(TIED_HEAD[0]), other.get_slice(TIED_HEAD[1])
            starts = range(0, head.shape[0], COMPARED_ROWS)
            alike = all(torch.equal(left[i : i + COMPARED_ROWS], right[i : i + COMPARED_ROWS]) for i in starts)
    if alike:
        return None
    return (
        f"tie_word_embeddings is true, but {TIED_HEAD[0]} and {TIED_HEAD[1]} in its files differ; set tie_word_embeddings to "
        "false in its config.json (and model.tie_word_embeddings), or remove one of the tensors"
    )
