import pytest
import torch

from harness.optim.ema import Ema
from tests.optim.network import named_parameters

GO, SKIP = torch.tensor(0.0), torch.tensor(1.0)


def test_averages_what_was_not_skipped() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    ema = Ema({"w": parameter}, 0.75)
    ema.reset()
    average = ema.state()["w"]
    assert average.tolist() == [1.0, -2.0]
    with torch.no_grad():
        parameter.copy_(torch.tensor([5.0, 2.0]))
    ema.update(SKIP)
    assert average.tolist() == [1.0, -2.0]
    ema.update(GO)
    assert average.tolist() == [2.0, -1.0]
    assert parameter.tolist() == [5.0, 2.0]


def test_a_skipped_update_changes_no_bit() -> None:
    parameters = named_parameters()
    ema = Ema(parameters, 0.999)
    ema.reset()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.mul_(1.1)
    ema.update(GO)
    before = {name: average.clone() for name, average in ema.state().items()}
    ema.update(SKIP)
    assert all(torch.equal(before[name], average) for name, average in ema.state().items())


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_a_decay_that_averages_nothing_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"optim\.ema_decay={decay}: .* null"):
        Ema(named_parameters(), decay)
