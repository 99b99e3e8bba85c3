"""What is wrong with `model.rope_scaling` is said by its key before a model is built."""

from typing import Any

import pytest

from harness.model.family import shape_problems
from harness.model.rope_scaling import depends_on_length, rope_problems
from tests.tiny import tiny_model

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 64,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0] * 8,
    "long_factor": [2] * 8,
    "original_max_position_embeddings": 64,
}

CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, []),
    "llama3": (LLAMA3, []),
    "longrope": (LONGROPE, []),
    "no kind": ({"factor": 2.0}, ["model.rope_scaling.rope_type=None: choose one of linear, "]),
    "another kind": ({"rope_type": "su"}, ["model.rope_scaling.rope_type=su: choose one of linear, "]),
    "missing": ({"rope_type": "yarn", "factor": 2}, ["model.rope_scaling.original_max_position_embeddings is missing: yarn needs it"]),
    "unknown": ({"rope_type": "linear", "factor": 2, "beta": 1}, ["model.rope_scaling.beta=1: not a parameter of linear; it has "]),
    "no number": ({"rope_type": "linear", "factor": "x"}, ["model.rope_scaling.factor=x: expected a positive number"]),
    "not positive": ({"rope_type": "linear", "factor": 0}, ["model.rope_scaling.factor=0: expected a positive number"]),
    "too short": ({**LONGROPE, "long_factor": [2]}, ["model.rope_scaling.long_factor: has 1 numbers, expected 8, half of"]),
    "the wrong way round": ({**LLAMA3, "low_freq_factor": 4}, [
        "model.rope_scaling.high_freq_factor=4: expected more than model.rope_scaling.low_freq_factor=4"]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_problems_name_their_key(case: str) -> None:
    scaling, expected = CASES[case]
    found = list(rope_problems(scaling, 16))
    assert len(found) == len(expected)
    assert all(problem.startswith(beginning) for problem, beginning in zip(found, expected, strict=True)), found
    assert list(shape_problems(tiny_model(rope_scaling=scaling))) == found


def test_lengths_that_have_a_part_in_the_scaling() -> None:
    assert depends_on_length({"rope_type": "dynamic"}) and depends_on_length({"rope_type": "yarn"})
    assert not depends_on_length({}) and not depends_on_length(LLAMA3)


WRONG = {
    "model.no_rope_layers holds 2: 1 for a layer with": {"no_rope_layers": [1, 0, 2, 1]},
    "model.no_rope_layers: has 2 entries, expected one for each": {"no_rope_layers": [1, 0]},
    "model.layer_types names wide: choose full_attention or": {
        "layer_types": ["wide", "sliding_attention"] * 2, "sliding_window": 5},
    "model.sliding_window=5: goes with sliding_attention in": {"sliding_window": 5},
    "model.hidden_act=prelu: choose one of gelu": {"hidden_act": "prelu"},
    "model.mlp_bias=True: qwen3 does not have it, only smollm3, llama do; set false": {
        "model_type": "qwen3", "no_rope_layer_interval": 0, "mlp_bias": True},
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_other_keys_of_the_shape(message: str) -> None:
    (problem,) = shape_problems(tiny_model(**WRONG[message]))
    assert problem.startswith(message)
