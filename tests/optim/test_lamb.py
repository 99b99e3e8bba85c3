import math

import numpy as np
import pytest
import torch

from harness.config.schema import OptimConfig
from harness.optim.adamw import AdamW
from harness.optim.lamb import Lamb
from tests.optim.network import named_parameters, numbers, set_gradients

CONFIG = OptimConfig(name="lamb", betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2)


@pytest.mark.parametrize("name", ["model.layers.0.mlp.up_proj.weight", "model.embed_tokens.weight"])
def test_follows_the_paper(name: str) -> None:
    parameters = named_parameters()
    optimizer = Lamb(parameters, CONFIG)
    weights = parameters[name].detach().double().numpy().copy()
    mean, square = np.zeros_like(weights), np.zeros_like(weights)
    for step in range(1, 6):
        set_gradients(parameters, step)
        gradient = parameters[name].grad.double().numpy() * 0.5
        optimizer.step(*numbers(lr=0.05, scale=0.5))
        mean = 0.8 * mean + 0.2 * gradient
        square = 0.9 * square + 0.1 * gradient**2
        update = mean / (1 - 0.8**step) / (np.sqrt(square / (1 - 0.9**step)) + 1e-6)
        update += (0.0 if "embed" in name else 0.2) * weights
        weights -= 0.05 * np.linalg.norm(weights) / np.linalg.norm(update) * update
    np.testing.assert_allclose(parameters[name].detach().numpy(), weights, rtol=1e-5, atol=1e-7)


def test_norms_and_biases_take_adamws_step() -> None:
    lamb, adamw = named_parameters(), named_parameters()
    for parameters, optimizer in ((lamb, Lamb(lamb, CONFIG)), (adamw, AdamW(adamw, CONFIG))):
        set_gradients(parameters, 1)
        optimizer.step(*numbers())
    for name, parameter in lamb.items():
        assert (parameter - adamw[name]).abs().max() < 1e-7 or parameter.ndim > 1


def test_zero_weights_can_leave_zero() -> None:
    """Where a norm is 0, the ratio is 1: the step is AdamW's."""
    parameters = {"model.layers.0.mlp.up_proj.weight": torch.nn.Parameter(torch.zeros(4, 3))}
    set_gradients(parameters, 1)
    Lamb(parameters, CONFIG).step(*numbers(lr=0.01))
    (weights,) = parameters.values()
    assert weights.norm().item() == pytest.approx(0.01 * math.sqrt(12), rel=1e-4)
