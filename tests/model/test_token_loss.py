import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn.functional import cross_entropy

from harness.model.token_loss import TokenLoss, chunk_size
from tests.ranks import in_ranks

BATCH, SEQ, WIDTH = 2, 12, 16
Z_LOSS = 1e-2


def inputs(vocabulary: int = 50, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(BATCH, SEQ, WIDTH, generator=draw, requires_grad=True)
    weight = torch.randn(vocabulary, WIDTH, generator=draw, requires_grad=True)
    labels = torch.randint(0, vocabulary, (BATCH, SEQ), generator=draw)
    labels[0, :3] = -100
    return hidden, weight, labels


def test_sums_over_micro_batches() -> None:
    loss = TokenLoss(z_loss=Z_LOSS, max_logits=8 * 50)
    assert loss.statistics.tolist() == [0, 0, -torch.inf, 0]
    wanted = []
    for seed in range(3):
        hidden, weight, labels = inputs(seed=seed)
        logits = (hidden @ weight.T).detach()[labels != -100]
        one = loss(hidden, weight, labels)
        without_z = cross_entropy(logits, labels[labels != -100], reduction="sum")
        squares = logits.logsumexp(1).square().sum()
        assert one.shape == () and one.dtype == torch.float32 and one.requires_grad
        assert one.item() == pytest.approx((without_z + Z_LOSS * squares).item(), rel=1e-6)
        wanted.append([without_z.item(), squares.item(), logits.max().item(), len(logits)])
    taken = loss.statistics
    cross, squares, largest, tokens = zip(*wanted, strict=True)
    expected = [sum(cross), sum(squares), max(largest), sum(tokens)]
    assert taken.dtype == torch.float64 and not taken.requires_grad
    assert taken.tolist() == pytest.approx(expected, rel=1e-6)
    loss.reset_statistics()
    loss(*inputs(seed=1))
    assert loss.statistics.tolist() == pytest.approx(wanted[1], rel=1e-6)
    assert taken.tolist() == pytest.approx(expected, rel=1e-6), "one that was taken must stay as it is"


def test_validation_leaves_no_graph() -> None:
    loss = TokenLoss(z_loss=0.0)
    with torch.no_grad():
        found = loss(*inputs())
    assert not found.requires_grad
    assert loss.statistics[0].item() == pytest.approx(found.item()) and loss.statistics[3] == BATCH * SEQ - 3


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [(16384, 1046, 1024), (100, 1000, 100), (100, 100, 100), (100, 99, 50), (30, 8, 6), (31, 8, 8), (7, 0, 1)],
)
def test_chunks_are_equal_where_that_costs_little(tokens: int, most: int, expected: int) -> None:
    assert chunk_size(tokens, most) == expected


@pytest.mark.parametrize("label", [50, -1, -99])
def test_label_outside_the_vocabulary(label: int) -> None:
    hidden, weight, labels = inputs()
    labels[1, 4] = label
    with pytest.raises(RuntimeError, match=r"a label is outside the vocabulary \(model.vocab_size=50\)"):
        TokenLoss(z_loss=0.0)(hidden, weight, labels)


def test_hidden_of_other_tokens() -> None:
    hidden, weight, labels = inputs()
    with pytest.raises(ValueError, match=r"hidden \[2, 6, 16\] and labels \[2, 12\] must have the same tokens"):
        TokenLoss(z_loss=0.0)(hidden[:, :6], weight, labels)


def divided(rank: int, world_size: int, vocabulary: int) -> tuple[torch.Tensor, ...]:
    """Two micro batches, as a rank of tensor parallel scores them."""
    mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("tp",))
    loss = TokenLoss(z_loss=Z_LOSS, max_logits=200, tp_mesh=mesh)
    hidden, full, labels = inputs(vocabulary)
    own = hidden.detach().chunk(world_size, 1)[rank].contiguous().requires_grad_()
    weight = torch.nn.Parameter(distribute_tensor(full.detach(), mesh, [Shard(0)]))
    losses = [loss(own, weight, labels) for _ in range(2)]
    (sum(losses) * 0.37).backward()
    assert isinstance(weight.grad, DTensor) and weight.grad.placements == weight.placements
    with torch.no_grad():
        assert torch.equal(loss(own, weight, labels), losses[0])
    return losses[0].detach(), loss.statistics, own.grad, weight.grad.full_tensor()


@pytest.mark.parametrize(("ranks", "vocabulary"), [(2, 50), (3, 50)])  # alike, and 17 + 17 + 16 rows
def test_tensor_parallel_equals_a_single_process(ranks: int, vocabulary: int) -> None:
    hidden, weight, labels = inputs(vocabulary)
    alone = TokenLoss(z_loss=Z_LOSS)
    losses = [alone(hidden, weight, labels) for _ in range(3)]
    (sum(losses[:2]) * 0.37).backward()
    found = in_ranks(divided, ranks, vocabulary)
    for loss, statistics, _, for_weight in found:
        torch.testing.assert_close(loss, losses[0].detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(statistics, alone.statistics, rtol=1e-6, atol=0)
        torch.testing.assert_close(for_weight, weight.grad, rtol=1e-5, atol=1e-6)
    for_hidden = torch.cat([for_own for _, _, for_own, _ in found], dim=1)
    torch.testing.assert_close(for_hidden, hidden.grad, rtol=1e-5, atol=1e-6)


def refused(rank: int, world_size: int) -> list[str]:
    """What a rank of tensor parallel says to input that does not fit, the same on all ranks."""
    mesh = init_device_mesh("cpu", (world_size,), mesh_dim_names=("tp",))
    hidden, weight, labels = inputs()
    half = hidden[:, : SEQ // 2]
    divided_weight = distribute_tensor(weight.detach(), mesh, [Shard(0)])
    whole_weight = distribute_tensor(weight.detach(), mesh, [Replicate()])
    single_row = distribute_tensor(weight.detach()[:1], mesh, [Shard(0)])
    parallel, alone = TokenLoss(z_loss=0.0, tp_mesh=mesh), TokenLoss(z_loss=0.0)
    said = []
    for loss, *arguments in (
        (parallel, hidden, divided_weight, labels),
        (parallel, half, weight, labels),
        (parallel, half, whole_weight, labels),
        (parallel, half, single_row, labels),
        (alone, hidden, divided_weight, labels),
    ):
        with pytest.raises(ValueError) as error:
            loss(*arguments)
        said.append(str(error.value))
    return said


def test_refuses_what_does_not_fit_on_all_ranks() -> None:
    said, also = in_ranks(refused, 2)
    assert said == also
    length, plain, whole, empty, alone = said
    assert "is not a whole sequence of 12: data.seq_len must be a multiple of parallel.tp" in length
    assert plain == "weight is plain, must be a DTensor whose rows are divided over 2 ranks"
    assert "Replicate()" in whole and "must be a DTensor whose rows are divided over 2 ranks" in whole
    assert "model.vocab_size=1 can't be divided over parallel.tp=2" in empty
    assert "built without tensor parallel" in alone
