"""The config.json of a Hugging Face model's folder, in the harness's terms: keys of `model`, or why it can't be trained here.

It is read by transformers, which knows older spellings (`rope_scaling`, `torch_dtype`) and what a family's absent fields mean.
Code that the folder brings is never run.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import ModelConfig
from harness.model.config_fields import CHANGES_NOTHING, KNOWN_NOTES, MUST_BE, NOT_IN_CLASS, taken
from harness.model.family import FULL, LAYER_TYPES, MODEL_TYPES, NOPE_LAYERS, SLIDING, SLIDING_WINDOW, shape_problems
from harness.model.rope_scaling import KINDS

FILE = "config.json"


class FolderConfigError(ValueError):
    """The folder's config can't be used; one sentence per problem, which names file and field."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class FolderConfig:
    """What a folder's config.json says."""

    keys: dict[str, Any]
    """Key of `model` -> value, for each key that says what the model computes."""
    unread: tuple[str, ...]
    """Keys in it that transformers does not read for this family."""


def read_folder_config(folder: Path) -> FolderConfig:
    """Raises FolderConfigError for a folder that is not one of a model that can be trained here, with every reason."""
    content = _read_json(folder)
    path = folder / FILE
    family = content.get("model_type")
    if family not in MODEL_TYPES:
        raise FolderConfigError([f"{path}: model_type={family}: expected one of {', '.join(MODEL_TYPES)}"])
    if problems := list(_refused_keys(content)):
        raise FolderConfigError([f"{path}: {problem}" for problem in problems])
    theirs = _by_transformers(folder, family)
    problems = [*_refused_fields(theirs, family), *_rope_problems(theirs.rope_parameters)]
    if problems:
        raise FolderConfigError([f"{path}: {problem}" for problem in problems])
    keys = dict(_keys(theirs, family))
    model = ModelConfig(**keys)
    if problems := list(shape_problems(model)) or list(_lost(theirs, model)):
        raise FolderConfigError([f"{path}: {problem}" for problem in problems])
    fields = {field.name for field in dataclasses.fields(theirs)}
    unread = sorted(key for key in content.keys() - fields - KNOWN_NOTES - NOT_IN_CLASS.keys() if content[key])
    return FolderConfig(keys, tuple(unread))


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FolderConfigError([_not_a_model(folder)]) from None
    except (OSError, ValueError) as error:
        raise FolderConfigError([f"{path}: not JSON, or truncated ({error}); copy it again"]) from error
    if not isinstance(content, dict):
        raise FolderConfigError([f"{path}: expected a JSON object, got {type(content).__name__}"])
    return content


def _not_a_model(folder: Path) -> str:
    """Why there is no config.json, as far as that can be told."""
    export = "export its weights with `python -m harness.export` and give that folder"
    if folder.is_file():
        return f"{folder} is a file: give the folder that holds config.json and the weights"
    if not folder.is_dir():
        return f"{folder}: no such folder; give one with config.json and safetensors (models are not downloaded)"
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return f"{folder} is a run: {export}"
    if (folder / "manifest.json").is_file() or any(folder.glob("step-*/manifest.json")):
        return f"{folder} is a checkpoint of a run: {export}"
    if inside := sorted(path.parent for path in folder.glob(f"*/{FILE}")):
        return f"{folder} has no {FILE}, but {inside[-1]} has: give that folder"
    if (folder / "adapter_config.json").is_file():
        return f"{folder} is an adapter: merge it into its base model and give the result"
    return f"{folder} has no {FILE}: give the folder of a Hugging Face model"


def _refused_keys(content: Mapping[str, Any]) -> Iterator[str]:
    """Keys outside of the family's class that change what is computed or stored."""
    family = content["model_type"]
    if content.get("auto_map"):
        yield "auto_map names code of its own, which is not run; if transformers' own class computes the same, remove auto_map"
    for key in ("quantization_config", "compression_config"):
        if content.get(key):
            yield f"{key}: the weights are quantised; give a model in bf16 or fp32"
    for key in ("rope_parameters", "rope_scaling"):
        if isinstance(content.get(key), dict) and any(isinstance(value, dict) for value in content[key].values()):
            yield f"{key}: different positions by kind of layer are not supported; expected one set for all layers"
    for key, harmless in NOT_IN_CLASS.items():
        if key in ("auto_map", "quantization_config", "compression_config") or key not in content:
            continue
        if key == "layer_types" and (family in LAYER_TYPES or set(content[key] or ()) <= {_only_type(content)}):
            continue
        if content[key] not in harmless:
            yield f"{key}={content[key]} is not supported for {family}; expected it to be absent"


def _only_type(content: Mapping[str, Any]) -> str:
    """The one kind of layers that a family without `layer_types` has."""
    slides = content["model_type"] in SLIDING_WINDOW and content.get("sliding_window") is not None
    return SLIDING if slides else FULL


def _by_transformers(folder: Path, family: str) -> Any:
    """transformers' config object of the folder. Raises FolderConfigError."""
    from transformers import CONFIG_MAPPING
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it warns of is checked here
    try:
        return CONFIG_MAPPING[family].from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # whatever a class makes of strange values
        what = str(error).strip().splitlines()
        raise FolderConfigError(
            [f"{folder / FILE}: transformers can't read it: {type(error).__name__}: {' '.join(what[:3])}"]
        ) from error
    finally:
        logging.set_verbosity(before)


def _refused_fields(theirs: Any, family: str) -> Iterator[str]:
    defaults = {field.name: field.default for field in dataclasses.fields(theirs)}
    for field, default in defaults.items():
        value = getattr(theirs, field)
        if field in MUST_BE and value not in MUST_BE[field]:
            yield f"{field}={value} is not supported; expected {MUST_BE[field][0]}"
        elif field not in MUST_BE.keys() | taken(family) | CHANGES_NOTHING and value != default:
            yield f"{field}={value} is not known to the harness; expected {family}'s default, {default}"
    if family in LAYER_TYPES and not theirs.use_sliding_window and SLIDING in theirs.layer_types:
        yield f"layer_types names {SLIDING}, but use_sliding_window is false; set use_sliding_window or {FULL}"
    if family in NOPE_LAYERS and len(theirs.no_rope_layers) < theirs.num_hidden_layers:
        yield f"no_rope_layers has {len(theirs.no_rope_layers)} entries for num_hidden_layers={theirs.num_hidden_layers}"


def _rope_problems(rope: Mapping[str, Any]) -> Iterator[str]:
    """Of transformers' `rope_parameters`; what `harness.model.rope_scaling` says of them comes later."""
    kind = rope.get("rope_type")
    if kind is None:
        yield f"rope_parameters={dict(rope)}: different ones by kind of layer are not supported"
        return
    if kind != "default" and kind not in KINDS:
        yield f"rope_type={kind} of rope_parameters: expected default, {', '.join(KINDS)}"
    extra = rope.keys() - {"rope_type", "type", "rope_theta", "partial_rotary_factor"} if kind == "default" else set()
    for key in sorted(extra):
        if rope[key] not in (None, 1):
            yield f"{key}={rope[key]} of rope_parameters: rope_type=default has no such parameter; expected it to be absent"
    partial = rope.get("partial_rotary_factor")
    if partial not in (None, 1, 1.0) and kind != "proportional":
        yield f"partial_rotary_factor={partial}: transformers does not compute it for this family; expected 1.0"
    if not isinstance(rope.get("rope_theta"), int | float):
        yield f"rope_theta={rope.get('rope_theta')} of rope_parameters: expected a number"


def _keys(theirs: Any, family: str) -> Iterator[tuple[str, Any]]:
    """Keys of `model` with the folder's values."""
    yield "model_type", family
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_act", "max_position_embeddings",
    ):  # fmt: skip
        yield key, getattr(theirs, key)
    yield "head_dim", getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
    yield "rms_norm_eps", float(theirs.rms_norm_eps)
    yield "initializer_range", float(theirs.initializer_range)
    yield "tie_word_embeddings", bool(theirs.tie_word_embeddings)
    rope = {key: value for key, value in theirs.rope_parameters.items() if value is not None and key != "type"}
    yield "rope_theta", float(rope.pop("rope_theta"))
    if rope["rope_type"] != "proportional":
        rope.pop("partial_rotary_factor", None)
    yield "rope_scaling", {} if rope["rope_type"] == "default" else rope
    for key in ("attention_bias", "mlp_bias"):
        yield key, bool(getattr(theirs, key, False)) if key in taken(family) else False
    if family in LAYER_TYPES and SLIDING not in theirs.layer_types:
        yield from (("sliding_window", None), ("layer_types", None))
    else:
        yield "sliding_window", theirs.sliding_window if family in SLIDING_WINDOW else None
        yield "layer_types", list(theirs.layer_types) if family in LAYER_TYPES else None
    if family in NOPE_LAYERS:
        yield from _nope_keys(list(map(int, map(bool, theirs.no_rope_layers)))[: theirs.num_hidden_layers], theirs)
    else:
        yield from (("no_rope_layer_interval", 0), ("no_rope_layers", None))


def _nope_keys(has_rope: list[int], theirs: Any) -> Iterator[tuple[str, Any]]:
    """The list as an interval, if it is one."""
    layers = range(1, len(has_rope) + 1)
    for every in dict.fromkeys([theirs.no_rope_layer_interval, 0, *layers]):
        if has_rope == [int(not every or layer % every != 0) for layer in layers]:
            yield from (("no_rope_layer_interval", every), ("no_rope_layers", None))
            return
    yield from (("no_rope_layer_interval", 0), ("no_rope_layers", has_rope))


def _lost(theirs: Any, model: ModelConfig) -> Iterator[str]:
    """Fields with which transformers would compute something else than the harness from these keys."""
    from harness.model.build import transformers_config

    ours = transformers_config(model)
    derived = {"no_rope_layer_interval", "use_sliding_window"}  # what follows from them is compared
    for field in sorted(taken(model.model_type) - derived):
        value, own = getattr(theirs, field), getattr(ours, field)
        if field == "rope_parameters":
            value, own = _rope_compared(value), _rope_compared(own)
        elif field == "no_rope_layers":
            value = [int(bool(entry)) for entry in value][: model.num_hidden_layers]
        elif field == "sliding_window" and model.sliding_window is None:
            continue
        if value != own:
            yield f"{field}={value}: the harness would compute with {own}; report this"


def _rope_compared(rope: Mapping[str, Any]) -> dict[str, Any]:
    """What of `rope_parameters` has a bearing on its kind of positions."""
    if rope["rope_type"] == "default":
        return {"rope_theta": rope["rope_theta"]}
    passed_over = {"type"} if rope["rope_type"] == "proportional" else {"type", "partial_rotary_factor"}
    return {key: value for key, value in rope.items() if value is not None and key not in passed_over}
