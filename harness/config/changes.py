"""What differs between the config that a run was started with and the one that it is launched with again."""

from collections.abc import Iterator
from typing import Any

FROZEN = (
    "model.",
    "data.seq_len",
    "data.seed",
    "data.stages",
    "data.shuffle",
    "data.packing",
    "data.eos_token_id",
    "data.document_mask",
    "train.global_batch_size",
    "train.seed",
    "optim.name",
)
"""A resumed run would silently be another run if these changed: the model's shape, the data's order, the batch."""

FREE = ("data.packing_cache", "model.init_from")
"""Begins like a frozen key and is none."""

IGNORED = ("dry_run", "follow", "runs_dir", "monitor.", "cluster.")
"""Where and how the run is launched may change from launch to launch."""


def changes(old: dict[str, Any], new: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Key -> (old value, new value) of every leaf that differs."""
    before, after = dict(_leaves(old)), dict(_leaves(new))
    keys = [*before, *(key for key in after if key not in before)]
    pairs = {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}
    # an empty list or dict that has got its first entry, or lost its last one: the entries themselves say so
    return {key: pair for key, pair in pairs.items() if not (None in pair and ([] in pair or {} in pair))}


def refused(differences: dict[str, tuple[Any, Any]]) -> list[str]:
    """One sentence for each change that would make the resumed run a different one."""
    return [
        f"{key}={after}: the run was started with {before}"
        for key, (before, after) in differences.items()
        if key.startswith(FROZEN) and not key.startswith(FREE)
    ]


def recorded(differences: dict[str, tuple[Any, Any]]) -> dict[str, tuple[Any, Any]]:
    """Changes that belong in the run's lineage."""
    return {key: change for key, change in differences.items() if not key.startswith(IGNORED)}


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list) and node and isinstance(node[0], dict):
        for index, value in enumerate(node):
            yield from _leaves(value, f"{prefix}[{index}]")
    else:
        yield prefix, node
