"""The safetensors files of a Hugging Face model's folder: which tensor is where, and whether the files are whole.

Reads headers alone, which also tell a file that was cut off by its size.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth")

NO_WEIGHT = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
"""Buffers that older versions of transformers saved with the weights, and that today's compute."""

FLOATS = ("F64", "F32", "F16", "BF16")
"""Number formats of weights; anything else is quantised."""


class WeightFilesError(ValueError):
    """The folder's weights can't be used; the message names file or tensor."""


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as its file's header has it."""

    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name, such as BF16."""


def stored_tensors(folder: Path) -> dict[str, StoredTensor]:
    """Tensor name -> where it is, without the buffers of NO_WEIGHT. Raises WeightFilesError."""
    placed = _placed(folder)
    found: dict[str, StoredTensor] = {}
    for file in sorted(set(placed.values())):
        inside = _header(file)
        for name in sorted(name for name, owner in placed.items() if owner == file):
            if name not in inside:
                raise WeightFilesError(
                    f"{file}: {INDEX} says that {name} is in it, but it is not; copy the folder again"
                )
            if not NO_WEIGHT.fullmatch(name):
                found[name] = inside[name]
    if not found:
        raise WeightFilesError(f"{folder}: its files hold no tensors")
    for name, tensor in found.items():
        if tensor.dtype not in FLOATS:
            raise WeightFilesError(
                f"{tensor.file}: {name} is stored as {tensor.dtype}: expected weights in {', '.join(FLOATS)}; give a model "
                "that is not quantised"
            )
    return found


def _placed(folder: Path) -> dict[str, Path]:
    """Tensor name -> the file that should hold it. As in transformers, a single file goes before an index."""
    index = folder / INDEX
    if (folder / SINGLE).is_file():
        return dict.fromkeys(_header(folder / SINGLE), folder / SINGLE)
    if not index.exists():
        raise WeightFilesError(_what_is_there(folder))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        placed = {str(name): folder / str(file) for name, file in weight_map.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise WeightFilesError(f"{index}: not an index of safetensors files, or truncated; copy it again") from error
    missing = sorted({file.name for file in placed.values() if not file.is_file()})
    if missing:
        raise WeightFilesError(
            f"{folder / missing[0]} is missing ({len(missing)} of {len(set(placed.values()))} files that {INDEX} names are); "
            "copy the folder again"
        )
    return placed


def _header(file: Path) -> dict[str, StoredTensor]:
    try:
        with safe_open(file, framework="np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (safe_open is no dict)
            return {name: StoredTensor(file, tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise WeightFilesError(
            f"{file} ({file.stat().st_size:,} bytes) is truncated or damaged: {error}; copy it again"
        ) from error


def _what_is_there(folder: Path) -> str:
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        return (
            f"{folder} has weights as {pickles[0]} only: pickles can run code and are not read; load the model with transformers "
            "and save it again with save_pretrained, which writes safetensors"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    hint = (
        f"it has {', '.join(others[:3])}, but no {INDEX} that says what is in which" if others else "copy the weights"
    )
    return f"{folder} has no {SINGLE} or {INDEX}: {hint}"
