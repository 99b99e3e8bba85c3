import pytest
import torch
from torch._dynamo.testing import CompileCounter

from harness.config.schema import OptimConfig
from harness.optim.adamw import AdamW, adamw_
from harness.optim.shards import flat, flat_gradient
from tests.optim.network import named_parameters, numbers, set_gradients

CONFIG = OptimConfig(betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)


@pytest.mark.parametrize("fused", [True, False])
def test_equals_torchs_adamw(fused: bool) -> None:
    ours, theirs = named_parameters(), named_parameters()
    optimizer = AdamW(ours, CONFIG)
    decaying = [p for name, p in theirs.items() if p.ndim > 1 and "embed" not in name]
    rest = [p for name, p in theirs.items() if p.ndim == 1 or "embed" in name]
    reference = torch.optim.AdamW(
        [{"params": decaying, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=CONFIG.betas, eps=CONFIG.eps, fused=fused,
    )  # fmt: skip
    for step in range(1, 21):
        lr, scale = 0.01 / step, 0.5 if step % 3 else 1.0
        set_gradients(ours, step)
        set_gradients(theirs, step, scale)
        optimizer.step(*numbers(lr=lr, scale=scale))
        for group in reference.param_groups:
            group["lr"] = lr
        reference.step()
    for name, parameter in ours.items():
        torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7)
        for kind, value in reference.state[theirs[name]].items():
            assert optimizer.state[name][kind].dtype == value.dtype
            torch.testing.assert_close(optimizer.state[name][kind], value, rtol=2e-6, atol=1e-9)


def test_takes_gradients_in_bf16() -> None:
    whole, rounded = named_parameters(), named_parameters()
    set_gradients(whole, 1)
    for name, parameter in whole.items():
        halved = parameter.grad.bfloat16()
        rounded[name].grad_dtype = torch.bfloat16
        rounded[name].grad = halved
        parameter.grad = halved.float()
    for parameters in (whole, rounded):
        AdamW(parameters, CONFIG).step(*numbers())
    assert all(torch.equal(whole[name], rounded[name]) for name in whole)


def test_a_parameter_without_gradient_stays() -> None:
    parameters = named_parameters()
    set_gradients(parameters, 1)
    parameters["model.norm.weight"].grad = None
    before = parameters["model.norm.weight"].detach().clone()
    AdamW(parameters, CONFIG).step(*numbers())
    assert torch.equal(parameters["model.norm.weight"], before)


@torch.no_grad()
def test_one_compilation_serves_all_parameters_and_steps() -> None:
    """What keeps a run on GPUs from compiling again; counted without generating code."""
    parameters = named_parameters()
    optimizer = AdamW(parameters, CONFIG)
    counter = CompileCounter()
    update = torch.compile(adamw_, dynamic=True, fullgraph=True, backend=counter)
    for step in range(1, 4):
        set_gradients(parameters, step)
        inside = optimizer._begin(*numbers(lr=0.1 / step, scale=1 / step, skip=float(step == 2)))
        for name, parameter in parameters.items():
            gradient = flat_gradient(parameter.grad)
            update(flat(parameter), gradient, *optimizer._moments(name), optimizer._decay[name], inside)
    assert counter.frame_count == 1
