import pytest
import torch

from harness.model.build import build_on_meta
from harness.model.init import init_weights
from harness.model.loss import LossModel
from tests.tiny import VOCAB, tiny_model


def loss_model(max_logits: int) -> LossModel:
    lm = build_on_meta(tiny_model(), "sdpa").to_empty(device="cpu")
    lm.tie_weights()
    init_weights(lm, 0)
    return LossModel(lm, max_logits)


def test_pieces_equal_the_whole_and_are_never_larger_than_allowed() -> None:
    draw = torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(0, VOCAB, (2, 30), generator=draw) for _ in range(2))
    labels[0, :7] = -100
    positions = torch.arange(30).expand(2, 30)
    whole, pieces = loss_model(2**28), loss_model(8 * VOCAB)
    rows: list[int] = []
    pieces.lm.lm_head.register_forward_hook(lambda module, args, out: rows.append(out.shape[0]))
    expected, found = whole(ids, labels, positions), pieces(ids, labels, positions)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    found.backward()
    assert max(rows) == 8 and len(rows) == 2 * 8  # each piece once forward, once again in the backward pass
    for (name, a), b in zip(whole.named_parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-5, atol=1e-6, msg=name)


def test_loss_is_that_of_transformers() -> None:
    model = loss_model(2**28)
    ids = torch.randint(0, VOCAB, (2, 30), generator=torch.Generator().manual_seed(1))
    ours = model(ids[:, :-1], ids[:, 1:].contiguous(), torch.arange(29).expand(2, 29)) / (2 * 29)
    assert ours.item() == pytest.approx(model.lm(input_ids=ids, labels=ids).loss.item(), rel=1e-6)
