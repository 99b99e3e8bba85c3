"""Every kernel of the GPU against a mask in fp32, outputs and gradients, as it is and compiled. Needs a CUDA device."""

from types import SimpleNamespace

import pytest
import torch

from harness.config.schema import AttentionKernel
from harness.model import attention
from harness.model.attention_functions import Attend, dense, in_segments
from harness.model.attention_kernels import Kernel
from harness.model.attention_segments import padded, segments
from tests.model.attending import expected, positions, true_mask

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

HEADS, KV_HEADS, TOKENS = 8, 2, 512
WHOLE = [[TOKENS], [TOKENS]]
FEW = [[100, 1, 155, 200, 56], [300, 212]]
"""Rows of documents by their lengths; cut in four, they begin, end and go on in every place."""
MANY = [[4] * 128, [1] * 64 + [448]]

Case = tuple[list[list[int]], int, int]
"""Rows of documents, the queries' chunk, and how many chunks there are."""

CASES: dict[str, Case] = {
    "documents": (FEW, 0, 1),
    "many-documents": (MANY, 0, 1),
    **{f"chunk-{chunk}": (FEW, chunk, 4) for chunk in range(4)},
    "many-documents-chunk-3": (MANY, 3, 4),
    "whole-chunk-2": (WHOLE, 2, 4),
}


@pytest.fixture(params=["flash4", "cudnn", "flash"])
def kind(request: pytest.FixtureRequest) -> AttentionKernel:
    return AttentionKernel(request.param)


def kernel_for(kind: AttentionKernel, head_dim: int, *, document_mask: bool, cp: int = 1) -> Kernel:
    """The kernel, or a skip where this machine can't have it."""
    need = attention._Need(torch.device("cuda"), torch.bfloat16, document_mask, head_dim, HEADS, KV_HEADS, cp)
    obstacle = attention._obstacle(kind, need)
    if obstacle:
        pytest.skip(obstacle)
    return attention._KERNELS[kind]


def inputs(head_dim: int) -> list[torch.Tensor]:
    """Query, key, value [2, heads, tokens, head_dim] in bf16, laid out as layers lay them out."""
    torch.manual_seed(0)
    shapes = [(2, TOKENS, heads, head_dim) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    return [torch.randn(shape, device="cuda", dtype=torch.bfloat16).transpose(1, 2) for shape in shapes]


def offsets(rows: list[list[int]], chunk: int, chunk_count: int, multiple: int) -> dict[str, torch.Tensor]:
    found = segments(positions(rows), chunk, chunk_count)
    cu_q, cu_k = (torch.from_numpy(padded(array, multiple)).cuda() for array in found)
    return {"cu_q_0": cu_q, "cu_k_0": cu_k}


def check(attend: Attend, case: Case, head_dim: int, given: dict) -> None:
    """`attend` to the chunk's queries and all keys, and compare with the mask."""
    rows, chunk, chunk_count = case
    own = slice(chunk * TOKENS // chunk_count, (chunk + 1) * TOKENS // chunk_count)
    query, key, value = inputs(head_dim)
    leaves = [query[:, :, own].clone().requires_grad_(), key.requires_grad_(), value.requires_grad_()]
    out, _ = attend(SimpleNamespace(), *leaves, None, scaling=0.1, **given)
    grad = torch.randn_like(out)
    found = [out, *torch.autograd.grad(out, leaves, grad)]

    exact = [t.detach().float().requires_grad_() for t in (query, key, value)]
    wanted_out = expected(rows, *exact, scale=0.1)[:, own]
    wanted_query, *others = torch.autograd.grad(wanted_out, exact, grad.float())
    for name, got, wanted in zip(
        ("out", "query", "key", "value"), found, (wanted_out, wanted_query[:, :, own], *others), strict=True
    ):
        error = ((got.float() - wanted).norm() / wanted.norm()).item()
        assert error < 0.01, f"{name}: relative error {error:.3g}"
    unseen = torch.from_numpy(~true_mask(rows)[:, own].any(1)).cuda()  # keys [batch, tokens] that no query attends to
    for gradient in found[2:]:
        assert not gradient.transpose(1, 2)[unseen].any(), "keys without queries have a gradient"


def attend_to(case: Case, kind: AttentionKernel, head_dim: int, multiple: int) -> tuple[Attend, dict]:
    """What layers call, and what they call it with."""
    rows, chunk, chunk_count = case
    kernel = kernel_for(kind, head_dim, document_mask=True, cp=chunk_count // 2 or 1)
    return in_segments(kernel.segments, [chunk], None), offsets(rows, chunk, chunk_count, multiple)


@pytest.mark.parametrize("head_dim", [64, 128])
def test_dense(kind: AttentionKernel, head_dim: int) -> None:
    attend = dense(kernel_for(kind, head_dim, document_mask=False).dense)
    check(attend, (WHOLE, 0, 1), head_dim, {})
    check(torch.compile(attend), (WHOLE, 0, 1), head_dim, {})


@pytest.mark.parametrize("case", CASES)
def test_segments(kind: AttentionKernel, case: str) -> None:
    attend, given = attend_to(CASES[case], kind, 128, 64)
    check(attend, CASES[case], 128, given)


@pytest.mark.parametrize("case", ["documents", "chunk-2"])
def test_segments_without_padding(kind: AttentionKernel, case: str) -> None:
    attend, given = attend_to(CASES[case], kind, 64, 1)
    check(attend, CASES[case], 64, given)


def test_compiled_chunk(kind: AttentionKernel) -> None:
    attend, given = attend_to(CASES["chunk-2"], kind, 128, 64)
    check(torch.compile(attend, fullgraph=True), CASES["chunk-2"], 128, given)


def test_compiled_kernel_takes_any_number_of_documents(kind: AttentionKernel) -> None:
    compiled = None
    for rows in (FEW, MANY, WHOLE):
        attend, given = attend_to((rows, 0, 1), kind, 128, 64)
        compiled = compiled or torch.compile(attend, fullgraph=True)
        check(compiled, (rows, 0, 1), 128, given)


@pytest.mark.parametrize("kind", ["flash4", "flash"], indirect=True)
def test_deterministic_mode_gives_the_same_bits(kind: AttentionKernel) -> None:
    attend, given = attend_to(CASES["documents"], kind, 128, 64)
    leaves = [t.requires_grad_() for t in inputs(128)]
    torch.use_deterministic_algorithms(True)
    try:
        runs = []
        for _ in range(5):
            out, _ = attend(SimpleNamespace(), *leaves, None, scaling=0.1, **given)
            runs.append([out, *torch.autograd.grad(out.sum(), leaves)])
    finally:
        torch.use_deterministic_algorithms(False)
    for again in runs[1:]:
        assert all(a.equal(b) for a, b in zip(again, runs[0], strict=True))
