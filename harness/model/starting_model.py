"""The model that `model.init_from` brings: its folder's config.json goes before defaults, and must agree with the user."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from harness.config.schema import ModelConfig
from harness.model.family import head_dim
from harness.model.folder_config import FILE, FolderConfigError, read_folder_config
from harness.model.rope_scaling import depends_on_length

CHANGEABLE = (
    "rope_theta", "rope_scaling", "max_position_embeddings", "rms_norm_eps", "no_rope_layer_interval", "no_rope_layers",
    "hidden_act", "sliding_window", "layer_types",
)  # fmt: skip
"""What `model.init_from_changes` may name: the same weights fit."""

FREE = ("initializer_range",)
"""Keys that change nothing in a model whose weights are loaded."""


def taken_from_folder(model: ModelConfig, typed: Collection[str]) -> ModelConfig:
    """`model` with the values of its folder for all keys but the `typed` ones. Raises FolderConfigError.

    A typed key that contradicts the folder is an error, unless `init_from_changes` names it.
    """
    assert model.init_from is not None
    if not model.init_from:
        raise FolderConfigError(["model.init_from is empty: give the folder of a Hugging Face model, or null"])
    folder = Path(model.init_from).expanduser()
    try:
        keys = read_folder_config(folder).keys
    except FolderConfigError as error:
        raise FolderConfigError(
            [f"model.init_from={model.init_from}: {problem}" for problem in error.problems]
        ) from error
    merged = dataclasses.replace(model, **{key: value for key, value in keys.items() if key not in typed})
    problems = [*_change_problems(model, typed), *_contradictions(merged, keys, typed)]
    if problems:
        raise FolderConfigError(problems)
    return merged


def remarks(model: ModelConfig) -> list[str]:
    """Sentences for the plan about a model that starts from a folder: what of config.json is passed over or changed.

    Raises FolderConfigError."""
    assert model.init_from is not None
    path = Path(model.init_from).expanduser() / FILE
    found = read_folder_config(path.parent)
    said = [
        f"model.{key}={_shown(getattr(model, key))}: {path} has {_shown(value)}"
        + ("; changed on purpose (model.init_from_changes)" if key in model.init_from_changes else "")
        for key, value in found.keys.items()
        if not _same(model, key, value) and key not in FREE
    ]
    if found.unread:
        said.append(
            f"{path}: transformers' {model.model_type} does not read {', '.join(found.unread)}, nor does the harness; make sure "
            "that the weights do not need it"
        )
    return said


def _change_problems(model: ModelConfig, typed: Collection[str]) -> Iterator[str]:
    for key in model.init_from_changes:
        if key not in CHANGEABLE:
            yield f"model.init_from_changes names {key}: choose from {', '.join(CHANGEABLE)}"
        elif key not in typed:
            yield f"model.init_from_changes names {key}: model.{key} is not set; set it, or remove it from the list"


def _contradictions(model: ModelConfig, keys: dict[str, Any], typed: Collection[str]) -> Iterator[str]:
    """One sentence for each typed key whose value is not the folder's."""
    families = [key for key in ("model_type",) if key in typed and not _same(model, key, keys[key])]
    for key in families or sorted(typed & keys.keys()):
        if _same(model, key, keys[key]) or key in FREE or key in model.init_from_changes:
            continue
        if key == "max_position_embeddings" and not depends_on_length(keys["rope_scaling"]):
            continue
        change = ""
        if key in CHANGEABLE:
            names = ",".join([*model.init_from_changes, key])
            change = f", or set model.init_from_changes=[{names}] to train it with another on purpose"
        yield (
            f"model.{key}={_shown(getattr(model, key))}: model.init_from={model.init_from} has {_shown(keys[key])} in {FILE}; "
            f"leave model.{key} out to take that{change}"
        )


def _same(model: ModelConfig, key: str, value: Any) -> bool:
    if key == "head_dim":
        return head_dim(model) == value
    own = getattr(model, key)
    if key == "rope_scaling":
        own = {parameter: number for parameter, number in own.items() if number is not None}
    return bool(own == value)


def _shown(value: Any) -> str:
    """As it is typed."""
    return (
        {None: "null", True: "true", False: "false"}.get(value, str(value))
        if not isinstance(value, list | dict)
        else str(value)
    )
