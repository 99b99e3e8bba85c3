import numpy as np
import pytest
import torch
import torch.distributed as dist

from harness.parallel.sequence import gather_sequence, own_chunks, shard_sequence
from tests.ranks import in_ranks


@pytest.mark.parametrize("cp", [1, 2, 3, 4])
def test_ranks_share_the_sequence_and_its_causal_work(cp: int) -> None:
    held = [own_chunks(cp, rank) for rank in range(cp)]
    assert sorted(chunk for chunks in held for chunk in chunks) == list(range(2 * cp if cp > 1 else 1))
    assert len({sum(chunks) for chunks in held}) == 1


def test_sharding() -> None:
    array = np.arange(24).reshape(2, 12)
    assert shard_sequence(array, 1, 0) is array
    found = [shard_sequence(array, 3, rank) for rank in range(3)]
    assert [part[0].tolist() for part in found] == [[0, 1, 10, 11], [2, 3, 8, 9], [4, 5, 6, 7]]
    assert all(part.flags["C_CONTIGUOUS"] for part in found)
    with pytest.raises(ValueError, match=r"parallel.cp=5: 2 x cp=10 must divide the sequence's 12 tokens"):
        shard_sequence(array, 5, 0)


def _gather(rank: int, cp: int, compiled: bool) -> tuple[torch.Tensor, torch.Tensor]:
    whole, weight, group = _whole(cp), _weight(cp, rank), dist.group.WORLD
    assert group is not None
    local = whole.unflatten(2, (2 * cp, -1))[:, :, own_chunks(cp, rank)].flatten(2, 3).requires_grad_()

    def weighed(local: torch.Tensor) -> torch.Tensor:
        return gather_sequence(local, group) * weight

    if compiled:
        weighed = torch.compile(weighed, backend="aot_eager", fullgraph=True)
    found = weighed(local)
    found.sum().backward()
    return found.detach().clone(), local.grad


def _whole(cp: int) -> torch.Tensor:
    return torch.randn(2, 3, 4 * cp, 5, generator=torch.Generator().manual_seed(0))


def _weight(cp: int, rank: int) -> torch.Tensor:
    return torch.randn(2, 3, 4 * cp, 5, generator=torch.Generator().manual_seed(1 + rank))


@pytest.mark.parametrize(("cp", "compiled"), [(2, False), (4, False), (2, True)])
def test_gathered_tokens_are_in_order_and_gradients_add_up(cp: int, compiled: bool) -> None:
    summed = torch.stack([_weight(cp, rank) for rank in range(cp)]).sum(0)
    for rank, (found, gradient) in enumerate(in_ranks(_gather, cp, compiled)):
        torch.testing.assert_close(found, _whole(cp) * _weight(cp, rank))
        own = summed.unflatten(2, (2 * cp, -1))[:, :, own_chunks(cp, rank)].flatten(2, 3)
        torch.testing.assert_close(gradient, own)
