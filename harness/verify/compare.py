"""Holds what the ranks of a layout saw against what one process saw."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from harness.checkpoint import folders
from harness.checkpoint.manifest import Manifest
from harness.checkpoint.storage import read_metadata
from harness.config.schema import ModelConfig, Precision
from harness.export.weights import read_tensors
from harness.model.family import layers_without_rope
from harness.run.files import read_json
from harness.run.folder import RunFolder

EVIDENCE = "evidence"
"""Folder in a run's folder: rank-N.json of every rank, and KIND-S.safetensors of every pipeline rank S, full tensors."""

FAILED = "failed"
"""File in the folder of a run that will have no checkpoint."""

CHECKS = (
    "initial weights", "shards differ", "loss", "gradient norm", "gradients", "updated weights", "copies agree",
    "saved, read alone", "saved alone, read",
)  # fmt: skip
"""Names of the checks, in their order."""

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tolerance:
    """Largest relative differences that rounding explains, with room for models that round more than those measured.

    Measured over the standard layouts, with AdamW, LAMB and Muon, tied and untied: in fp32 7e-8, 4e-7, 2e-6 and 2e-5, in bf16
    4e-5, 2e-3, 2e-2 and 1e-1 (Muon's; AdamW's is 4e-2)."""

    loss: float
    norm: float
    gradients: float
    """Of a tensor's largest difference to its largest element."""
    weights: float
    """Of the norm of a tensor's difference to that of all that the steps have changed. The 1% of its elements that differ
    most are left out: where a gradient is nearly zero, Adam turns its rounding into a whole step."""


TOLERANCES = {
    Precision.fp32: Tolerance(loss=1e-5, norm=1e-4, gradients=1e-4, weights=1e-3),
    Precision.bf16: Tolerance(loss=1e-3, norm=2e-2, gradients=1e-1, weights=3e-1),
}


@dataclass(frozen=True)
class Check:
    """One comparison."""

    name: str
    difference: float | None
    """Largest relative difference; None where something is alike or not."""
    tolerance: float
    """0: not one bit may differ."""
    passed: bool
    where: str | None
    """What differs, and by how much: the first tensor in the model's order, and the one that differs most; or the first
    step. None: nothing does."""


def compare(found: Path, reference: Path, tolerance: Tolerance) -> list[Check]:
    """All checks of the run in folder `found`, which went on from `reference`'s checkpoint after its own steps."""
    layout, alone = _Evidence(found), _Evidence(reference)
    names = alone.ranks[0]["names"]
    start = alone.tensors("initial")[0]
    end = _weights(alone.tensors("state")[0])
    moved = {name: torch.linalg.vector_norm(end[name].double() - start[name].double()) for name in names}

    def to_largest(name: str, one: torch.Tensor, other: torch.Tensor) -> float:
        return _ratio((one - other).abs().max(), other.abs().max())

    def to_movement(name: str, one: torch.Tensor, other: torch.Tensor) -> float:
        differences = (one - other).abs().flatten()
        kept = differences.numel() - max(1, differences.numel() // 100)
        return _ratio(torch.linalg.vector_norm(differences.sort().values[:kept]), moved[name])

    noise = _rounding_alone(RunFolder(reference).load_config().model)
    trained = [name for name in names if name not in noise]
    states = [_weights(state) for state in layout.tensors("state")]
    return [
        _tensors("initial weights", layout.tensors("initial"), start, names, 0.0, to_largest),
        _shards(layout, names),
        _numbers("loss", layout.ranks, alone.ranks[0], "losses", tolerance.loss),
        _numbers("gradient norm", layout.ranks, alone.ranks[0], "norms", tolerance.norm),
        _tensors(
            "gradients",
            layout.tensors("gradients"),
            alone.tensors("gradients")[0],
            trained,
            tolerance.gradients,
            to_largest,
        ),
        _tensors("updated weights", states, end, trained, tolerance.weights, to_movement),
        _copies(layout, names),
        *_checkpoints(found, layout, alone, to_largest),
    ]


def _rounding_alone(model: ModelConfig) -> set[str]:
    """Names of parameters whose gradient is nothing but rounding: without rotary positions, a bias that all keys share changes
    no attention."""
    if not model.attention_bias:
        return set()
    return {f"model.layers.{layer}.self_attn.k_proj.bias" for layer in layers_without_rope(model)}


class _Evidence:
    """What one run left behind (`harness.verify.rank`)."""

    def __init__(self, run: Path) -> None:
        self._folder = run / EVIDENCE
        self.ranks: list[dict[str, Any]] = [read_json(path) for path in sorted(self._folder.glob("rank-*.json"))]

    def tensors(self, kind: str) -> list[Tensors]:
        """Full tensors by name, of each pipeline rank."""
        return [load_file(path) for path in sorted(self._folder.glob(f"{kind}-*.safetensors"))]


Measure = Callable[[str, torch.Tensor, torch.Tensor], float]


def _tensors(
    check: str, stages: list[Tensors], expected: Tensors, names: list[str], tolerance: float, measure: Measure
) -> Check:
    """Every tensor of every pipeline rank against the one of that name; all names must be among them."""
    differences: dict[str, float] = {}
    for name in names:
        found = [stage[name] for stage in stages if name in stage]
        if name not in expected or not found or any(tensor.shape != expected[name].shape for tensor in found):
            return Check(check, None, tolerance, False, f"{name} is not there, or has another shape")
        differences[name] = _largest(measure(name, tensor.double(), expected[name].double()) for tensor in found)
    failed = [name for name, difference in differences.items() if not difference <= tolerance]  # NaN too
    where = None
    if failed:
        worst = max(failed, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name])
        where = ", most ".join(f"{name} ({differences[name]:.1e})" for name in dict.fromkeys([failed[0], worst]))
    return Check(check, _largest(differences.values()), tolerance, not failed, where)


def _numbers(check: str, ranks: list[dict[str, Any]], reference: dict[str, Any], key: str, tolerance: float) -> Check:
    """A figure of every step, on every rank."""
    differences, where = [0.0], None
    for step, expected in enumerate(reference[key], 1):
        for number, rank in enumerate(ranks):
            differences.append(abs(rank[key][step - 1] - expected) / abs(expected) if expected else math.inf)
            if not differences[-1] <= tolerance and where is None:  # NaN too
                where = f"step {step} on rank {number}: {rank[key][step - 1]:.6g} instead of {expected:.6g}"
    return Check(check, _largest(differences), tolerance, where is None, where)


def _shards(layout: _Evidence, names: list[str]) -> Check:
    """Ranks that hold different parts of a matrix must start from different numbers."""
    for name, holders in _holders(layout, names, "parts"):
        by_digest: dict[str, str] = {}
        for part, digest in holders:
            if "), (" in part and by_digest.setdefault(digest, part) != part:
                return Check("shards differ", None, 0.0, False, f"{name}: {by_digest[digest]} and {part} are alike")
    return Check("shards differ", None, 0.0, True, None)


def _copies(layout: _Evidence, names: list[str]) -> Check:
    """Ranks that hold the same part of a tensor must still hold the same numbers after the steps."""
    for name, holders in _holders(layout, names, "parts_after"):
        by_part: dict[str, str] = {}
        for part, digest in holders:
            if by_part.setdefault(part, digest) != digest:
                return Check("copies agree", None, 0.0, False, f"{name}: {part} differs between ranks")
    return Check("copies agree", None, 0.0, True, None)


def _holders(layout: _Evidence, names: list[str], key: str) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for name in names:
        yield name, [tuple(rank[key][name]) for rank in layout.ranks if name in rank[key]]


def _checkpoints(found: Path, layout: _Evidence, alone: _Evidence, measure: Measure) -> Iterator[Check]:
    """The layout's checkpoint as one process reads it, and one process' checkpoint as the layout reads it."""
    own, states = alone.tensors("state")[0], layout.tensors("state")
    checkpoints = RunFolder(found).checkpoints_dir
    steps = folders.complete_steps(checkpoints)
    saved = _read(folders.complete_path(checkpoints, steps[0])) if steps else {}
    names = list(dict.fromkeys(name for state in [saved, *states] for name in state))
    yield _tensors("saved, read alone", states, saved, names, 0.0, measure)
    yield _tensors("saved alone, read", layout.tensors("restored"), own, list(own), 0.0, measure)


def _read(checkpoint: Path) -> Tensors:
    files = {record.name for record in Manifest.read(checkpoint).files}
    metadata = read_metadata(checkpoint, files)
    return dict(read_tensors(checkpoint, metadata, list(metadata.state_dict_metadata)))


def _weights(state: Mapping[str, torch.Tensor]) -> Tensors:
    prefix = "model."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _largest(differences: Iterable[float]) -> float:
    """The largest, or NaN where there is one."""
    found = list(differences)
    return math.nan if any(map(math.isnan, found)) else max(found)


def _ratio(difference: torch.Tensor, size: torch.Tensor) -> float:
    return float(difference / size) if size else float(difference)
