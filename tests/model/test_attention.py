import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from harness.config.schema import AttentionKernel
from harness.model import attention, attention_kernels
from harness.model.attention import Attention, choose_attention
from harness.model.attention_kernels import flash4
from harness.model.build import transformers_config
from harness.parallel.sequence import own_chunks
from tests.model.attending import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    PLAIN,
    SCALE,
    attend_densely,
    attend_in_segments,
    call,
    expected,
    heads_of,
    positions,
)
from tests.ranks import in_ranks
from tests.tiny import VOCAB, tiny_model

ROWS = [[5, 1, 10, 16], [32]]
"""Documents of two packed rows of 32 tokens."""

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
auto, flash4_kernel, cudnn, flash, sdpa = AttentionKernel


def choose(device: torch.device = CPU, dtype: torch.dtype = torch.float32, **changes: Any) -> Attention:
    shape = {"head_dim": HEAD_DIM, "heads": HEADS, "kv_heads": KV_HEADS}
    return choose_attention(device, dtype, **{"wanted": auto, "document_mask": True, **shape, **changes})


def gradients(out: torch.Tensor, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return torch.autograd.grad((out * weight).sum(), inputs)


@contextmanager
def deterministic_mode() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def check_against_the_mask(chosen: Attention, rows: list[list[int]] = ROWS) -> None:
    """Outputs and gradients, without context parallel."""
    inputs = [t.requires_grad_() for t in heads_of(2, 32)]
    out, wanted = call(chosen, positions(rows), *inputs), expected(rows, *inputs)
    torch.testing.assert_close(out, wanted)
    torch.testing.assert_close(gradients(out, inputs), gradients(wanted, inputs))


# --- sdpa, and any kernel --------------------------------------------------------------------------------------------


def test_sdpa_attends_within_documents() -> None:
    chosen = choose()
    assert (chosen.name, chosen.remark) == ("sdpa", None)
    check_against_the_mask(chosen)


def test_sdpa_without_documents_needs_no_mask() -> None:
    chosen = choose(document_mask=False)
    assert chosen.inputs(positions(ROWS)) == {}
    check_against_the_mask(chosen, [[32], [32]])


@pytest.fixture
def plain_kernel(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Attention]:
    """Choose a kernel in plain torch as if it were a GPU's."""
    _use_plain_kernel(monkeypatch.setattr)
    return lambda **changes: choose(wanted=flash, **changes)


def _use_plain_kernel(set_attribute: Callable[..., object]) -> None:
    set_attribute(attention, "_KERNELS", {flash: PLAIN})
    set_attribute(attention, "_obstacle", lambda kernel, need: None)


def test_kernel_takes_documents_as_segments(plain_kernel: Callable[..., Attention]) -> None:
    chosen = plain_kernel()
    check_against_the_mask(chosen)
    inputs = chosen.inputs(positions(ROWS))
    assert {name: tensor.tolist() for name, tensor in inputs.items()} == {
        "cu_q_0": [0, 5, 6, 16, 32, 64, 64, 64],
        "cu_k_0": [0, 5, 6, 16, 32, 64, 64, 64],
    }


def test_kernel_takes_whole_sequences_without_offsets(plain_kernel: Callable[..., Attention]) -> None:
    chosen = plain_kernel(document_mask=False)
    assert chosen.inputs(positions(ROWS)) == {}
    check_against_the_mask(chosen, [[32], [32]])


# --- context parallel ------------------------------------------------------------------------------------------------


def _shared_out(rank: int, cp: int, rows: list[list[int]], plain: bool) -> tuple[torch.Tensor, ...]:
    """Own part of the output and of the gradients, with sdpa or with a kernel for segments."""
    if plain:
        _use_plain_kernel(setattr)
    chosen = choose(wanted=flash if plain else auto, cp=cp, cp_rank=rank, cp_group=dist.group.WORLD)
    own = [_own_part(t, cp, rank).requires_grad_() for t in heads_of(len(rows), sum(rows[0]))]
    out = call(chosen, positions(rows), *own)
    weight = torch.randn(len(rows), sum(rows[0]), HEADS, HEAD_DIM, generator=torch.Generator().manual_seed(1))
    weight = _own_part(weight.transpose(1, 2), cp, rank).transpose(1, 2)
    return out.detach(), *torch.autograd.grad((out * weight).sum(), own)


def _own_part(whole: torch.Tensor, cp: int, rank: int) -> torch.Tensor:
    """Chunks of `whole` [batch, heads, tokens, head_dim]."""
    return whole.unflatten(2, (2 * cp, -1))[:, :, own_chunks(cp, rank)].flatten(2, 3)


@pytest.mark.parametrize("plain", [False, True], ids=["sdpa", "segments"])
@pytest.mark.parametrize("cp", [2, 4])
def test_ranks_that_share_sequences_equal_one(cp: int, plain: bool) -> None:
    rows = [*ROWS, [9, 23]]
    inputs = [t.requires_grad_() for t in heads_of(len(rows), 32)]
    out = expected(rows, *inputs)
    wanted = [out.transpose(1, 2), *gradients(out, inputs)]
    for rank, (found, *grads) in enumerate(in_ranks(_shared_out, cp, rows, plain)):
        parts = [_own_part(t, cp, rank) for t in wanted]
        torch.testing.assert_close([found.transpose(1, 2), *grads], parts)


def test_sharing_needs_a_group() -> None:
    with pytest.raises(ValueError, match="cp=2 ranks share a sequence, but cp_group is None"):
        choose(cp=2)


# --- a whole model ---------------------------------------------------------------------------------------------------


def _hidden(rows: list[list[int]], ids: torch.Tensor, chosen: Attention) -> torch.Tensor:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(transformers_config(tiny_model()), attn_implementation=chosen.name)
    position_ids = positions(rows)
    inputs = chosen.inputs(position_ids)
    hidden, places = lm.model.embed_tokens(ids), torch.from_numpy(position_ids)
    embeddings = lm.model.rotary_emb(hidden, places)
    for layer in lm.model.layers:
        hidden = layer(hidden, position_ids=places, position_embeddings=embeddings, **inputs)
    return hidden


def test_packed_documents_equal_separate_ones(plain_kernel: Callable[..., Attention]) -> None:
    ids = torch.randint(1, VOCAB, (2, 32), generator=torch.Generator().manual_seed(0))
    whole = choose(document_mask=False, wanted=sdpa)
    separate = [
        _hidden([[part.shape[0]]], part[None], whole)[0]
        for row, lengths in enumerate(ROWS)
        for part in ids[row].split(lengths)
    ]
    for chosen in (choose(wanted=sdpa), plain_kernel()):
        packed = _hidden(ROWS, ids, chosen)
        torch.testing.assert_close(packed.flatten(0, 1), torch.cat(separate), rtol=1e-4, atol=1e-5)
    unmasked = _hidden([[32], [32]], ids, whole)
    assert not torch.allclose(unmasked.flatten(0, 1), torch.cat(separate), rtol=1e-2)  # or documents never mattered


# --- what is handed to the libraries ---------------------------------------------------------------------------------


def test_torchs_varlen_kernel_gets_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gqa(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, is_causal):  # type: ignore[no-untyped-def]
        assert is_causal and query.shape == key.shape == value.shape
        return attend_in_segments(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)

    def with_gqa(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa):  # type: ignore[no-untyped-def]
        assert window_size == (-1, 0) and enable_gqa
        return attend_in_segments(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, scale)

    monkeypatch.setattr(attention, "_obstacle", lambda kernel, need: None)
    for version in (without_gqa, with_gqa):
        monkeypatch.setattr(attention_kernels, "_VARLEN", version)
        options = frozenset(attention_kernels.inspect.signature(version).parameters)
        monkeypatch.setattr(attention_kernels, "_VARLEN_OPTIONS", options)
        check_against_the_mask(choose(wanted=flash))


def gradients_in_an_op(
    forward: Callable[..., torch.Tensor], inputs: tuple[torch.Tensor, ...], out: torch.Tensor, grad: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Of `inputs`, by computing `out` once more. Autograd is off within an op, but not in another thread."""

    def differentiate() -> tuple[torch.Tensor, ...]:
        leaves = [t.detach().requires_grad_() for t in inputs]
        again = forward(*leaves)
        torch.testing.assert_close(again, out)
        return torch.autograd.grad(again, leaves, grad)

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(differentiate).result()


@pytest.fixture
def flash_attn(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The package flash-attn-4 in plain torch; `deterministic` collects what the backward was told."""
    seen = SimpleNamespace(deterministic=[])

    def dense(q, k, v, *, softmax_scale, causal, return_lse):  # type: ignore[no-untyped-def]
        assert causal and return_lse
        out = attend_densely(*(t.transpose(1, 2) for t in (q, k, v)), softmax_scale)
        return out.contiguous(), q.new_zeros(q.shape[0], q.shape[2], q.shape[1])

    def varlen(  # type: ignore[no-untyped-def]
        q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, return_lse
    ):
        assert causal and return_lse
        limits = max_seqlen_q, max_seqlen_k, softmax_scale
        return attend_in_segments(q, k, v, cu_seqlens_q, cu_seqlens_k, *limits), q.new_zeros(q.shape[1], len(q))

    def backward(q, k, v, out, dout, lse, *, softmax_scale, causal, deterministic, dq, dk, dv, **segments):  # type: ignore[no-untyped-def]
        seen.deterministic.append(deterministic)
        assert lse.shape == (*q.shape[:-3], q.shape[-2], q.shape[-3])
        options = {"softmax_scale": softmax_scale, "causal": causal, "return_lse": True, **segments}
        again = lambda *inputs: (varlen if segments else dense)(*inputs, **options)[0]  # noqa: E731
        for to, gradient in zip((dq, dk, dv), gradients_in_an_op(again, (q, k, v), out, dout), strict=True):
            to.copy_(gradient)
        return dq, dk, dv

    package, interface = ModuleType("flash_attn.cute"), ModuleType("flash_attn.cute.interface")
    package.flash_attn_func, package.flash_attn_varlen_func = dense, varlen  # type: ignore[attr-defined]
    package.interface, interface._flash_attn_bwd = interface, backward  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", interface)
    return seen


def test_flash4_gets_what_it_needs(flash_attn: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_obstacle", lambda kernel, need: None)
    check_against_the_mask(choose(wanted=flash4_kernel))
    check_against_the_mask(choose(wanted=flash4_kernel, document_mask=False), [[32], [32]])
    assert flash_attn.deterministic == [False, False]
    with deterministic_mode():
        check_against_the_mask(choose(wanted=flash4_kernel))
    assert flash_attn.deterministic[2]


def test_flash4_is_a_sound_custom_op(flash_attn: SimpleNamespace) -> None:
    """Shapes, dtypes and strides that torch.compile plans with are those that come; gradients are registered."""
    query, key, value = (t.transpose(1, 2).contiguous().requires_grad_() for t in heads_of(2, 32))
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_static")
    torch.library.opcheck(flash4, (query, key, value, None, None, 32, 32, SCALE), test_utils=checks)
    flat = (t.detach().flatten(0, 1).requires_grad_() for t in (query, key, value))
    cu = torch.tensor([0, 5, 6, 16, 32, 64, 64], dtype=torch.int32)
    torch.library.opcheck(flash4, (*flat, cu, cu, 32, 32, SCALE), test_utils=checks)


def test_compiled_flash4_is_one_graph(flash_attn: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_obstacle", lambda kernel, need: None)
    for document_mask, rows in ((True, ROWS), (False, [[32], [32]])):
        chosen = choose(wanted=flash4_kernel, document_mask=document_mask)
        attend = torch.compile(ALL_ATTENTION_FUNCTIONS[chosen.name], backend="aot_eager", fullgraph=True)
        inputs = [t.requires_grad_() for t in heads_of(2, 32)]
        out, _ = attend(None, *inputs, None, scaling=SCALE, **chosen.inputs(positions(rows)))
        wanted = expected(rows, *inputs)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(gradients(out, inputs), gradients(wanted, inputs))


# --- the choice ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there is a GPU, by default one that can do all, with all packages."""

    def pretend(capability: tuple[int, int] = (9, 0), cudnn: bool = True, varlen: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(attention.torch, "empty", lambda *shape, **options: np.zeros(0))
        monkeypatch.setattr(torch.backends.cuda, "SDPAParams", lambda *case: case)
        monkeypatch.setattr(torch.backends.cuda, "can_use_cudnn_attention", lambda case: cudnn)
        if not varlen:
            monkeypatch.setattr(attention_kernels, "_VARLEN", None)

    pretend()
    return pretend


def chosen(dtype: torch.dtype = torch.bfloat16, **changes: Any) -> tuple[str, str]:
    found = choose(CUDA, dtype, **changes)
    return found.name, found.remark or ""


def test_auto_takes_the_fastest(gpu: Callable[..., None], flash_attn: SimpleNamespace) -> None:
    assert chosen() == ("harness_fa4_segments", "")
    assert chosen(document_mask=False) == ("harness_cudnn", "")
    gpu(cudnn=False)
    name, remark = chosen(document_mask=False)
    assert name == "harness_fa4" and "cudnn can't do 4 heads over 2 of head_dim 8" in remark
    gpu(capability=(8, 0))  # where flash4 can never run, there is nothing to say
    assert chosen() == ("harness_fa2_segments", "")
    assert chosen(document_mask=False) == ("harness_cudnn", "")
    gpu(capability=(8, 0), cudnn=False)
    name, remark = chosen(document_mask=False)
    assert name == "harness_fa2" and "cudnn can't do 4 heads over 2 of head_dim 8" in remark
    gpu(capability=(7, 5), varlen=False)
    name, remark = chosen()
    assert name == "sdpa" and remark == (
        "train.attention=auto: sdpa is used, because flash needs a GPU of compute capability 8 or higher, not 7.5"
    )


def test_missing_kernels_fall_back_with_a_remark(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    for wanted in (auto, flash4_kernel):
        name, remark = chosen(wanted=wanted)
        assert name == "harness_fa2_segments"
        assert f"train.attention={wanted}: flash is used, because flash4 needs the package flash-attn-4" in remark
    gpu(varlen=False)
    name, remark = chosen(wanted=flash)
    assert name == "sdpa" and f"torch {torch.__version__} has no flash kernel for variable lengths" in remark
    assert chosen(wanted=sdpa) == ("sdpa", "")


def test_a_broken_package_is_a_missing_one(gpu: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def find_spec(self, name: str, *args: object) -> None:
            if name.startswith("flash_attn"):
                raise OSError("libcute.so: undefined symbol")

    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    name, remark = chosen()
    assert name == "harness_fa2_segments" and "OSError: libcute.so: undefined symbol" in remark


def test_cudnn_never_sees_documents(gpu: Callable[..., None], flash_attn: SimpleNamespace) -> None:
    name, remark = chosen(wanted=cudnn)
    assert name == "harness_fa4_segments" and "plans anew for every set of documents" in remark
    group = SimpleNamespace(group_name="7")
    name, remark = chosen(document_mask=False, cp=2, cp_group=group)
    assert name == "harness_fa4_segments_cp_7"


def test_deterministic_mode_leaves_cudnn_out(gpu: Callable[..., None]) -> None:
    gpu(capability=(8, 0))
    with deterministic_mode():
        name, remark = chosen(document_mask=False)
    assert name == "harness_fa2" and "as train.deterministic asks" in remark


def test_what_no_fast_kernel_can_do(gpu: Callable[..., None], flash_attn: SimpleNamespace) -> None:
    assert chosen(torch.float32) == (
        "sdpa",
        "train.attention=auto: sdpa is used, because the faster kernels compute in bf16 or fp16, not float32",
    )
    assert "a head_dim that 8 divides, 256 at most, not 20" in chosen(head_dim=20)[1]
    gpu(capability=(10, 0))
    name, remark = chosen(head_dim=192)
    assert name == "harness_fa2_segments" and "flash4 needs a head_dim of up to 128, or 256, on this GPU" in remark
    gpu(capability=(8, 9))
    name, remark = chosen(wanted=flash4_kernel)
    assert name == "harness_fa2_segments" and "compute capability 9 or 10, not 8.9" in remark


def test_cpu_has_sdpa_only() -> None:
    assert choose().remark is None
    for wanted in (flash4_kernel, cudnn, flash):
        found = choose(wanted=wanted)
        assert found.name == "sdpa" and found.remark == (
            f"train.attention={wanted}: sdpa is used, because {wanted} runs on GPUs only"
        )
