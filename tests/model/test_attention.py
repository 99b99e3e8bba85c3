from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from harness.model import attention
from harness.model.attention import VARLEN, choose_attention, document_bounds
from harness.model.build import build_on_meta
from harness.model.init import init_weights
from harness.model.loss import LossModel
from tests.tiny import VOCAB, tiny_model

LENGTHS = [[5, 1, 10, 16], [32]]
"""Documents of two packed rows of 32 tokens."""


def model_with(implementation: str, **changes: object) -> LossModel:
    lm = build_on_meta(tiny_model(**changes), implementation).to_empty(device="cpu")
    lm.tie_weights()
    init_weights(lm, 0)
    return LossModel(lm)


def packed() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, VOCAB, (2, 33), generator=torch.Generator().manual_seed(0))
    positions = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), positions


def loss_and_gradients(model: LossModel, *inputs: torch.Tensor, **kwargs: object) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = model(*inputs, **kwargs)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_packed_documents_equal_separate_ones(implementation: str) -> None:
    model = model_with(implementation)
    ids, labels, positions = packed()
    loss, gradients = loss_and_gradients(model, ids, labels, positions)
    model.zero_grad()
    total = 0.0
    for row, lengths in enumerate(LENGTHS):
        for part in torch.split(torch.arange(32), lengths):
            piece = (t[row, part][None] for t in (ids, labels, positions))
            separate = model(*piece)
            separate.backward()
            total += separate.item()
    assert loss == pytest.approx(total, rel=1e-6)
    for packed_gradient, p in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(packed_gradient, p.grad, rtol=1e-4, atol=1e-5)
    unmasked = model(ids, labels, torch.arange(32).expand(2, 32)).item()
    assert unmasked != pytest.approx(total, rel=1e-6)  # otherwise the documents never mattered


def test_document_bounds() -> None:
    bounds = document_bounds(packed()[2].numpy())
    assert bounds.dtype == np.int32
    assert bounds.tolist() == [0, 5, 6, 16, 32, 64]


def _varlen_on_cpu(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size):  # type: ignore[no-untyped-def]
    """What torch's kernel computes, document by document. It takes as many key heads as query heads."""
    assert window_size == (-1, 0) and query.shape == key.shape and max_q >= int(cu_seq_q.diff().max())
    pieces = []
    for start, end in pairwise(cu_seq_q.tolist()):
        q, k, v = (t[start:end].transpose(0, 1) for t in (query, key, value))
        pieces.append(scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale).transpose(0, 1))
    return torch.cat(pieces)


def test_variable_length_attention_equals_the_mask() -> None:
    attention._register(_varlen_on_cpu)
    ids, labels, positions = packed()
    expected, expected_gradients = loss_and_gradients(model_with("sdpa"), ids, labels, positions)
    bounds = torch.from_numpy(document_bounds(positions.numpy()))
    loss, gradients = loss_and_gradients(
        model_with(VARLEN), ids, labels, positions, cu_seq_lens_q=bounds, max_length_q=32
    )
    assert loss == pytest.approx(expected, rel=1e-6)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_choice_of_attention() -> None:
    cuda = torch.device("cuda")
    assert choose_attention(torch.device("cpu"), torch.float32, True) == ("sdpa", None)
    assert choose_attention(cuda, torch.bfloat16, False) == ("sdpa", None)
    assert choose_attention(cuda, torch.bfloat16, True) == (VARLEN, None)
    name, remark = choose_attention(cuda, torch.float32, True)
    assert name == "sdpa" and remark is not None and "bf16" in remark
