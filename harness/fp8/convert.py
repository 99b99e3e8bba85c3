"""Lets the layers of a stage multiply in FP8."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from harness.config.schema import Fp8Recipe
from harness.fp8.gathered import GatheredInFp8
from harness.fp8.products import gated_product, product
from harness.fp8.weights import MIN_WIDTH, attention_group, gated_groups, output_group
from harness.model.fuse import fuse_projections
from harness.model.stage import Stage


def convert(stage: Stage, recipe: Fp8Recipe, *, sharded: bool, emulate: bool) -> None:
    """Let the layers' matrices multiply in FP8, in place; `stage` is on meta. Weights, gradients and optimizer state stay fp32.

    `sharded`: FSDP2 divides the weights. With `emulate` only values are rounded to FP8, for devices without FP8 units.
    Raises ValueError where torchao is missing.
    """
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"train.precision=fp8: needs torchao ({error}): pip install 'harness[gpu]', or set bf16"
        ) from error
    for layer in stage.layers.values():
        if recipe is Fp8Recipe.rowwise:
            _convert_rowwise(layer, emulate)
        else:
            _convert_tensorwise(layer, sharded)


def _convert_rowwise(layer: nn.Module, emulate: bool) -> None:
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), emulate=emulate)
    convert_to_float8_training(layer, config=config, module_filter_fn=_wide)


def _convert_tensorwise(layer: nn.Module, sharded: bool) -> None:
    attention: Any = layer.get_submodule("self_attn")
    mlp: Any = layer.get_submodule("mlp")
    converted: list[nn.Linear] = []
    if projections := attention_group(layer):
        fuse_projections(attention, product)
        converted += projections
    else:
        fuse_projections(attention)
    if output := output_group(layer):
        attention.o_proj.forward = _multiplied(attention.o_proj)
        converted += output
    if gated := gated_groups(layer):
        assert "silu" in str(mlp.act_fn).lower()
        mlp.forward = _gated(mlp)
        converted += [*gated[0], *gated[1]]
    assert all(module.bias is None for module in converted)
    if sharded:
        for module in converted:
            module.weight = nn.Parameter(GatheredInFp8(module.weight.detach()))


def _multiplied(module: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: product(x, module.weight)


def _gated(mlp: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: gated_product(x, mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)


def _wide(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and min(module.in_features, module.out_features) >= MIN_WIDTH
