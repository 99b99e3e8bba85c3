"""FP8 matrix products in the layers, by torchao. Weights, gradients and optimizer state stay fp32.

With tensorwise scales FSDP2 gathers the weights in FP8: torchao wraps each rank's fp32 part in a tensor of its own kind,
which casts itself before it is sent. `harness.parallel.local` sees through that wrapping.
"""

from dataclasses import replace

from torch import nn

from harness.config.schema import Fp8Recipe
from harness.model.stage import Stage

MIN_WIDTH = 1024
"""Matrices with a narrower side stay in bf16: casting costs them more than the faster product saves."""


def convert(stage: Stage, recipe: Fp8Recipe, *, emulate: bool) -> None:
    """Let the layers' matrices multiply in FP8, in place. With `emulate` only their values are rounded to it, for devices
    without FP8 units. Raises ValueError where torchao is missing."""
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ValueError(
            f"train.precision=fp8: needs torchao ({error}): pip install 'harness[gpu]', or set bf16"
        ) from error
    config = replace(
        Float8LinearConfig.from_recipe_name(recipe.value),
        enable_fsdp_float8_all_gather=recipe is Fp8Recipe.tensorwise,
        emulate=emulate,
    )
    for layer in stage.layers.values():
        convert_to_float8_training(layer, config=config, module_filter_fn=_wide)


def precompute_scales(stage: Stage) -> None:
    """The scales of all weights that are gathered in FP8, with one reduction instead of one each. After every update."""
    from torchao.float8 import precompute_float8_dynamic_scale_for_fsdp

    precompute_float8_dynamic_scale_for_fsdp(stage)


def _wide(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear) and min(module.in_features, module.out_features) >= MIN_WIDTH
