"""What holds for every optimizer."""

import math

import pytest
import torch

from harness.config.schema import OptimConfig
from harness.optim.ema import Ema
from harness.optim.optimizer import OPTIMIZERS, build_optimizer
from tests.optim.network import named_parameters, numbers, set_gradients, whole
from tests.ranks import in_ranks

STEPS = 5


def trained(name: str, layout: str) -> dict[str, torch.Tensor]:
    """Weights, state and average after a few steps, one of them skipped; the tensors whole."""
    parameters = named_parameters(layout)
    optimizer = build_optimizer(parameters, OptimConfig(name=name))
    average = Ema(parameters, 0.5)
    average.reset()
    for step in range(1, STEPS + 1):
        set_gradients(parameters, step)
        lr, scale, skip = numbers(lr=0.02, scale=0.7, skip=float(step == 3))
        optimizer.step(lr, scale, skip)
        average.update(skip)
    found = {name: whole(parameter) for name, parameter in parameters.items()}
    found |= {f"{name}.{kind}": whole(t) for name, tensors in optimizer.state.items() for kind, t in tensors.items()}
    return found | {f"ema.{name}": whole(tensor) for name, tensor in average.state().items()}


def trained_by_all(rank: int, world_size: int, layout: str) -> dict[str, dict[str, torch.Tensor]]:
    return {name: trained(name, layout) for name in OPTIMIZERS}


@pytest.mark.parametrize(("ranks", "layout"), [(2, "fsdp"), (4, "fsdp"), (4, "hsdp"), (4, "fsdp x tp")])
def test_every_layout_gives_the_same_weights_and_state(ranks: int, layout: str) -> None:
    results = in_ranks(trained_by_all, ranks, layout)
    for name in OPTIMIZERS:
        alone = trained(name, "whole")
        for of_rank in results:
            assert of_rank[name].keys() == alone.keys()
            for tensor, value in alone.items():
                torch.testing.assert_close(of_rank[name][tensor], value, rtol=1e-5, atol=1e-6, msg=f"{name}: {tensor}")


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1.0])
def test_a_skipped_step_changes_no_bit(name: str, bad: float) -> None:
    parameters = named_parameters()
    optimizer = build_optimizer(parameters, OptimConfig(name=name))
    set_gradients(parameters, 1)
    optimizer.step(*numbers())
    state = {(n, kind): t for n, tensors in optimizer.state.items() for kind, t in tensors.items()}
    before = {key: tensor.clone() for key, tensor in (parameters | state).items()}
    for parameter in parameters.values():
        parameter.grad.fill_(bad)
    optimizer.step(*numbers(scale=math.nan if bad != 1.0 else 1.0, skip=1.0))
    assert all(torch.equal(tensor, before[key]) for key, tensor in (parameters | state).items())
    optimizer.step(*numbers())
    assert not torch.equal(parameters["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_scaled_as_they_are_read(name: str) -> None:
    scaled, given = named_parameters(), named_parameters()
    set_gradients(scaled, 1)
    set_gradients(given, 1, factor=0.25)
    kept = {key: p.grad.clone() for key, p in scaled.items()}
    for parameters, scale in ((scaled, 0.25), (given, 1.0)):
        optimizer = build_optimizer(parameters, OptimConfig(name=name, eps=1e-3))
        for _ in range(2):
            optimizer.step(*numbers(scale=scale))
    assert all(torch.equal(scaled[key], given[key]) and torch.equal(scaled[key].grad, kept[key]) for key in scaled)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_reset_starts_over_in_the_same_tensors(name: str) -> None:
    parameters = named_parameters()
    start = {key: p.detach().clone() for key, p in parameters.items()}
    optimizer = build_optimizer(parameters, OptimConfig(name=name))
    held = [t for tensors in optimizer.state.values() for t in tensors.values()]

    def two_steps() -> dict[str, torch.Tensor]:
        for step in (1, 2):
            set_gradients(parameters, step)
            optimizer.step(*numbers())
        return {key: p.detach().clone() for key, p in parameters.items()}

    first = two_steps()
    assert any(t.any() for t in held)
    optimizer.reset()
    assert not any(t.any() for t in held)
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(start[key])
    second = two_steps()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(a is b for a, b in zip(held, (t for ts in optimizer.state.values() for t in ts.values()), strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_parameters_are_no_problem(name: str) -> None:
    optimizer = build_optimizer({}, OptimConfig(name=name))
    optimizer.step(*numbers())
    optimizer.reset()
    assert optimizer.state == {}


def test_unknown_optimizer_is_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.name=sgd: choose one of adamw, muon, lamb"):
        build_optimizer(named_parameters(), OptimConfig(name="sgd"))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("skip", [0.0, 1.0])
def test_copies_hold_the_new_weights(name: str, skip: float) -> None:
    parameters = named_parameters()
    optimizer = build_optimizer(parameters, OptimConfig(name=name))
    first, *_ = parameters
    copies = {n: torch.zeros_like(p, dtype=torch.bfloat16) for n, p in parameters.items() if n != first}
    before = {n: p.detach().clone() for n, p in parameters.items()}
    set_gradients(parameters, 1)
    optimizer.step(*numbers(skip=skip), copies)
    for n, copy in copies.items():
        assert torch.equal(copy, parameters[n].to(torch.bfloat16)), n
        assert torch.equal(parameters[n], before[n]) == bool(skip), n
