import pytest
import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy

from harness.model import linear_cross_entropy as module
from harness.model.linear_cross_entropy import linear_cross_entropy, matmul_into_fp32
from tests.ranks import in_ranks

TOKENS, WIDTH, VOCAB = 30, 16, 50
NEEDS_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SCALE = 0.37  # what the loss is multiplied by before its backward pass


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, weight and targets, some of which are left out."""
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=draw).to(dtype).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=draw).to(dtype).requires_grad_()
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=draw)
    targets[[0, 1, 17]] = -100
    return hidden, weight, targets


def plain(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, z_loss: float) -> torch.Tensor:
    logits = hidden @ weight.T
    squares = logits.logsumexp(1).square()[targets != -100]
    return cross_entropy(logits, targets, reduction="sum") + z_loss * squares.sum()


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss * SCALE, tensors)


def assert_near(found: torch.Tensor, expected: torch.Tensor, rel: float) -> None:
    """In the norm of the difference, which does not ask a tiny element to be as exact as the sum it came from."""
    assert found.dtype == expected.dtype and found.shape == expected.shape
    assert (found - expected).norm() <= rel * expected.norm()


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("chunk", [TOKENS, 10, 7, 1, 1000])
def test_equals_the_plain_formula(chunk: int, z_loss: float) -> None:
    hidden, weight, targets = inputs()
    expected = plain(hidden, weight, targets, z_loss)
    found, _ = linear_cross_entropy(hidden, weight, targets, z_loss=z_loss, chunk=chunk)
    assert_near(found, expected, 1e-6)
    for ours, theirs in zip(gradients(found, hidden, weight), gradients(expected, hidden, weight), strict=True):
        assert_near(ours, theirs, 1e-6)


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs()
    hidden = (hidden * 300).detach().requires_grad_()
    expected = plain(hidden, weight, targets, 0.0)
    found, statistics = linear_cross_entropy(hidden, weight, targets, chunk=8)
    assert statistics[2] > 1000  # the exponential of which fp32 does not hold
    assert_near(found, expected, 1e-6)
    assert_near(gradients(found, hidden)[0], gradients(expected, hidden)[0], 1e-5)


def test_statistics() -> None:
    hidden, weight, targets = inputs()
    logits = (hidden @ weight.T).detach()[targets != -100]
    loss, found = linear_cross_entropy(hidden, weight, targets, z_loss=1e-2, chunk=8)
    without_z = cross_entropy(logits, targets[targets != -100], reduction="sum")
    expected = torch.stack([without_z, logits.logsumexp(1).square().sum(), logits.max(), torch.tensor(27.0)])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    assert loss.requires_grad and not found.requires_grad
    assert_near(loss.detach(), found[0] + 1e-2 * found[1], 1e-6)


def test_nothing_to_score() -> None:
    hidden, weight, targets = inputs()
    loss, statistics = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100), z_loss=1.0, chunk=8)
    assert loss.item() == 0 and statistics.tolist() == [0, 0, -torch.inf, 0]
    assert all(not gradient.any() for gradient in gradients(loss, hidden, weight))


def test_bf16_is_as_good_as_bf16_gets() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    exact = [tensor.detach().float().requires_grad_() for tensor in (hidden, weight)]
    expected = plain(*exact, targets, 1e-3)
    found, _ = linear_cross_entropy(hidden, weight, targets, z_loss=1e-3, chunk=8)
    assert found.dtype == torch.float32
    assert_near(found, expected, 2e-3)
    for ours, theirs in zip(gradients(found, hidden, weight), gradients(expected, *exact), strict=True):
        assert ours.dtype == torch.bfloat16
        assert_near(ours.float(), theirs, 1e-2)


def test_chunks_are_summed_in_fp32() -> None:
    hidden, weight, targets = inputs(torch.bfloat16)
    whole, chunks = (linear_cross_entropy(hidden, weight, targets, chunk=chunk)[0] for chunk in (TOKENS, 1))
    (expected,), (found,) = gradients(whole, weight), gradients(chunks, weight)
    assert_near(found.float(), expected.float(), 3e-4)  # bf16 sums would be ten times as far off


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NEEDS_GPU)])
def test_scaling_rounds_once(device: str) -> None:
    """A gradient of the loss that bf16 can't hold must not be rounded to bf16 before it multiplies."""
    hidden, weight, targets = (tensor.detach().to(device) for tensor in inputs(torch.bfloat16))
    loss, _ = linear_cross_entropy(hidden.requires_grad_(), weight, targets, chunk=8)
    once, scaled = (torch.autograd.grad(loss * s, hidden, retain_graph=True)[0] for s in (1.0, 1.003))
    assert torch.equal(scaled, (once.float() * 1.003).bfloat16())
    assert not torch.equal(scaled, once)


def test_gradcheck() -> None:
    hidden, weight, targets = inputs(torch.float64)
    some = slice(14, 19)  # one of them left out

    def loss(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return linear_cross_entropy(hidden, weight, targets[some], z_loss=1e-2, chunk=2)[0]

    assert torch.autograd.gradcheck(loss, (hidden[some].detach().requires_grad_(), weight))


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_computes_only_the_gradient_that_is_asked_for(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs()
    expected = gradients(plain(hidden, weight, targets, 0.0), hidden if wanted == "hidden" else weight)[0]
    products = count_products(monkeypatch)
    hidden.requires_grad_(wanted == "hidden")
    weight.requires_grad_(wanted == "weight")
    loss, _ = linear_cross_entropy(hidden, weight, targets, chunk=10)
    loss.mul(SCALE).backward()
    assert products == {"hidden": 3 * (wanted == "hidden"), "weight": 3 * (wanted == "weight")}
    found, other = (hidden.grad, weight.grad) if wanted == "hidden" else (weight.grad, hidden.grad)
    assert other is None
    assert_near(found, expected, 1e-6)


def test_computes_no_gradient_without_grad_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight, targets = inputs()
    expected = plain(hidden, weight, targets, 1e-2).detach()
    products = count_products(monkeypatch)
    with torch.no_grad():
        loss, statistics = linear_cross_entropy(hidden, weight, targets, z_loss=1e-2, chunk=10)
    assert products == {"hidden": 0, "weight": 0}
    assert not loss.requires_grad and statistics[3] == 27
    assert_near(loss, expected, 1e-6)


def count_products(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts the matrix products that lead to each gradient."""
    products = {"hidden": 0, "weight": 0}
    mm, into_fp32 = torch.mm, module.matmul_into_fp32

    def counting(name, function):
        def call(*args, **kwargs):
            products[name] += 1
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(torch, "mm", counting("hidden", mm))
    monkeypatch.setattr(module, "matmul_into_fp32", counting("weight", into_fp32))
    return products


def test_never_holds_more_logits_than_a_chunk() -> None:
    hidden, weight, targets = inputs()
    seen: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.ndim == 2 and out.shape[1] == VOCAB:
                seen.append(out.shape[0])
            return out

    with Watch():
        loss, _ = linear_cross_entropy(hidden, weight, targets, chunk=8)
        loss.backward()
    assert set(seen) - {WIDTH} == {8, TOKENS % 8}  # the transposed weight has WIDTH rows


def test_backward_again_but_not_through_itself() -> None:
    hidden, weight, targets = inputs()
    loss, _ = linear_cross_entropy(hidden, weight, targets, chunk=8)
    first, again = (torch.autograd.grad(loss, hidden, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, hidden, create_graph=True)


def test_products_accumulate_in_fp32() -> None:
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(40, 40, generator=draw).bfloat16() for _ in range(2))
    out = torch.full((40, 40), 1000.0)  # a unit in the last place of bf16 is 4 here
    for _ in range(10):
        matmul_into_fp32(out, a, b)
    assert_near(out - 1000, 10 * (a.float() @ b.float()), 1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chunk": 0}, "chunk=0: must be at least 1"),
        ({"targets": torch.zeros(5, dtype=torch.int64)}, r"targets \[5\]: must be \[tokens, width\]"),
        ({"targets": torch.zeros(TOKENS)}, "targets torch.float32: the first two must be the same"),
        ({"weight": torch.zeros(VOCAB, WIDTH + 1)}, r"weight \[50, 17\].*: must be"),
        ({"weight": torch.zeros(VOCAB, WIDTH).bfloat16()}, "hidden is torch.float32, weight torch.bfloat16"),
        ({"weight": torch.zeros(0, WIDTH)}, "must not be empty"),
    ],
)
def test_bad_input(changes: dict, message: str) -> None:
    hidden, weight, targets = inputs()
    arguments = {"hidden": hidden, "weight": weight, "targets": targets, "chunk": 8, **changes}
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(**arguments)


def divided(rank: int, world_size: int, first_rows: list[int]) -> tuple[torch.Tensor, ...]:
    hidden, weight, targets = inputs()
    own = weight[first_rows[rank] : first_rows[rank + 1]].detach().requires_grad_()
    loss, statistics = linear_cross_entropy(
        hidden, own, targets, z_loss=1e-2, chunk=8, group=dist.group.WORLD, first_token=first_rows[rank]
    )
    return loss.detach(), statistics, *gradients(loss, hidden, own)


def test_vocabulary_divided_over_ranks() -> None:
    hidden, weight, targets = inputs()
    loss, statistics = linear_cross_entropy(hidden, weight, targets, z_loss=1e-2, chunk=8)
    for_hidden, for_weight = gradients(loss, hidden, weight)
    ranks = in_ranks(divided, 3, [0, 20, 40, VOCAB])
    for found, found_statistics, *_ in ranks:
        assert_near(found, loss.detach(), 1e-6)
        torch.testing.assert_close(found_statistics, statistics, rtol=1e-6, atol=0)
    assert_near(sum(share for _, _, share, _ in ranks), for_hidden, 1e-6)
    assert_near(torch.cat([rows for *_, rows in ranks]), for_weight, 1e-6)


@NEEDS_GPU
@pytest.mark.parametrize("first_token", [0, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_do_what_plain_torch_does(dtype: torch.dtype, first_token: int) -> None:
    """With a vocabulary that takes several turns, the last of them cut short."""
    draw = torch.Generator().manual_seed(0)
    logits = (10 * torch.randn(40, 20_003, generator=draw)).to(dtype)
    targets = torch.randint(0, 40_000, (40,), generator=draw)  # half of them among other ranks' rows
    targets[[0, 7]] = -100
    expected = module._sums(logits, targets, first_token)
    found = module._sums(logits.cuda(), targets.cuda(), first_token)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)
    turned = logits.cuda()
    module._to_gradient(logits, expected, targets, 1e-3, first_token)
    module._to_gradient(turned, expected.cuda(), targets.cuda(), 1e-3, first_token)
    torch.testing.assert_close(turned.cpu(), logits, rtol=1e-2 if dtype is torch.bfloat16 else 1e-4, atol=1e-7)


@NEEDS_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_without_waiting_for_it(dtype: torch.dtype) -> None:
    hidden, weight, targets = inputs(dtype)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    expected = plain(*exact, targets, 1e-3)
    hidden, weight = (tensor.detach().cuda().requires_grad_() for tensor in (hidden, weight))
    targets = targets.cuda()
    rel = 1e-2 if dtype is torch.bfloat16 else 1e-3  # fp32 products may be in TF32
    for warm in (False, True):  # compiling may wait
        torch.cuda.set_sync_debug_mode("error" if warm else "default")
        try:
            found, _ = linear_cross_entropy(hidden, weight, targets, z_loss=1e-3, chunk=10)
            ours = gradients(found, hidden, weight)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert_near(found.double().cpu(), expected, rel)
    for found, theirs in zip(ours, gradients(expected, *exact), strict=True):
        assert_near(found.double().cpu(), theirs, rel)
