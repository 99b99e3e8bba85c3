import pytest
import torch

from harness.config.schema import OptimConfig
from harness.optim.adamw import AdamW
from harness.optim.muon import Muon, orthogonalise
from tests.optim.network import named_parameters, numbers, set_gradients


@pytest.mark.parametrize("shape", [(20, 20), (8, 33), (33, 8)])
def test_orthogonalise_takes_singular_values_through_the_quintic(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / matrix.norm()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = left @ values.diag() @ right
    torch.testing.assert_close(orthogonalise(matrix.float()).double(), expected, rtol=0, atol=2e-5)
    assert 0.5 < values.min() < values.max() < 1.3


def test_orthogonalise_in_bf16_and_of_nothing() -> None:
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    coarse = orthogonalise(matrix.bfloat16())
    assert coarse.dtype == torch.bfloat16
    torch.testing.assert_close(coarse.float(), orthogonalise(matrix), rtol=0, atol=0.03)
    assert torch.equal(orthogonalise(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_equals_torchs_muon_but_for_its_bf16() -> None:
    """torch's orthogonalises in bf16 on every device; updates agree within its rounding."""
    ours = named_parameters()
    name = "model.layers.1.mlp.up_proj.weight"
    theirs = torch.nn.Parameter(ours[name].detach().clone())
    start = theirs.detach().clone()
    optimizer = Muon(ours, OptimConfig(name="muon", momentum=0.9, weight_decay=0.1))
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    for step in range(1, 6):
        set_gradients(ours, step)
        theirs.grad = ours[name].grad.clone()
        optimizer.step(*numbers(lr=0.01))
        reference.step()
    torch.testing.assert_close(optimizer.state[name]["momentum_buffer"], reference.state[theirs]["momentum_buffer"])
    moved = (theirs.detach() - start).norm()
    assert moved > 0.04
    assert (ours[name].detach() - theirs.detach()).norm() < 0.02 * moved


def test_all_but_the_layers_matrices_go_on_with_adamw() -> None:
    muon, adamw = named_parameters(), named_parameters()
    config = OptimConfig(name="muon")
    optimizers = Muon(muon, config), AdamW(adamw, config)
    for step in (1, 2):
        for parameters, optimizer in zip((muon, adamw), optimizers, strict=True):
            set_gradients(parameters, step)
            optimizer.step(*numbers())
    same = {name for name in muon if torch.equal(muon[name], adamw[name])}
    assert {name for name in muon if name not in same} == {
        name for name in muon if "layers" in name and "proj.weight" in name
    }
    assert list(optimizers[0].state) == list(muon)
    assert {frozenset(optimizers[0].state[name]) for name in same} == {frozenset({"step", "exp_avg", "exp_avg_sq"})}
