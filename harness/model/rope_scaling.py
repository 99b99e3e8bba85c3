"""Which scaled rotary positions there are, and what each needs: `model.rope_scaling`. Imports no torch.

The kinds and their parameters are those of transformers' `ROPE_INIT_FUNCTIONS`; a test holds them against it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Kind:
    """One way to scale rotary positions."""

    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()


KINDS = {
    "linear": Kind(("factor",)),
    "dynamic": Kind(("factor",)),
    "yarn": Kind(
        ("factor", "original_max_position_embeddings"),
        ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": Kind(
        ("short_factor", "long_factor", "original_max_position_embeddings"), ("factor", "attention_factor")
    ),
    "llama3": Kind(("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")),
    "proportional": Kind((), ("factor", "partial_rotary_factor")),
}

LISTS = ("short_factor", "long_factor")
"""Parameters with one number for each pair of a head's numbers."""


def depends_on_length(scaling: Mapping[str, Any]) -> bool:
    """Whether `model.max_position_embeddings` has a part in the scaling, in any version of transformers: those before 5 have
    the factor of yarn and longrope from it."""
    return scaling.get("rope_type") in ("dynamic", "yarn", "longrope")


def rope_remark(scaling: Mapping[str, Any], seq_len: int, document_mask: bool) -> str | None:
    """What a user should know of how rotary positions are scaled in training."""
    first = scaling.get("original_max_position_embeddings")
    if scaling.get("rope_type") != "longrope" or not document_mask or not first or seq_len <= first:
        return None
    return (
        f"model.rope_scaling: sequences of data.seq_len={seq_len} are trained with the long factors throughout, documents up to "
        f"{first} tokens too, for which transformers takes the short ones"
    )


def rope_problems(scaling: Mapping[str, Any], head_dim: int) -> Iterator[str]:
    """Sentences about a `model.rope_scaling` that transformers could not use, or would not use as it is meant."""
    if not scaling:
        return
    name = scaling.get("rope_type")
    kind = KINDS.get(str(name))
    if kind is None:
        yield f"model.rope_scaling.rope_type={name}: choose one of {', '.join(KINDS)}, or leave model.rope_scaling empty"
        return
    known = {"rope_type", *kind.needed, *kind.optional}
    for key in sorted(set(scaling) - known):
        yield f"model.rope_scaling.{key}={scaling[key]}: not a parameter of {name}; it has {', '.join(sorted(known))}"
    for key in kind.needed:
        if scaling.get(key) is None:
            yield f"model.rope_scaling.{key} is missing: {name} needs it"
    for key in sorted(set(scaling) & known - {"rope_type", "truncate"}):
        yield from _value_problems(key, scaling[key], head_dim)
    yield from _order_problems(scaling)


def _order_problems(scaling: Mapping[str, Any]) -> Iterator[str]:
    """Pairs of numbers of which the first must be the larger one: transformers divides by their difference."""
    for larger, smaller in (("high_freq_factor", "low_freq_factor"), ("beta_fast", "beta_slow")):
        above, below = scaling.get(larger), scaling.get(smaller)
        if isinstance(above, int | float) and isinstance(below, int | float) and above <= below:
            yield f"model.rope_scaling.{larger}={above}: expected more than model.rope_scaling.{smaller}={below}"


def _value_problems(key: str, value: Any, head_dim: int) -> Iterator[str]:
    if value is None:
        return
    numbers = value if key in LISTS and isinstance(value, list) else [value]
    if not all(isinstance(number, int | float) and not isinstance(number, bool) and number > 0 for number in numbers):
        yield f"model.rope_scaling.{key}={value}: expected {'positive numbers' if key in LISTS else 'a positive number'}"
    elif key in LISTS and len(numbers) != head_dim // 2:
        yield f"model.rope_scaling.{key}: has {len(numbers)} numbers, expected {head_dim // 2}, half of model.head_dim={head_dim}"
