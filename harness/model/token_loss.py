"""The loss of a micro batch, with its statistics: the end of the last pipeline stage, whatever the layout."""

from math import ceil

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from harness.model.family import MAX_LOGITS
from harness.model.linear_cross_entropy import IGNORED, linear_cross_entropy


class TokenLoss(nn.Module):
    """Scores hidden states against the tokens that follow, a chunk at a time. Has no parameters: the head's weight is given.

    With tensor parallel, each rank comes with its part of the sequence and holds its rows of the head.
    """

    statistics: torch.Tensor
    """Over the micro batches since `reset_statistics`, fp64 [4] on the device of the loss: sum of the cross-entropies (without
    z-loss), sum of the squared logsumexps of the logits, largest logit, number of tokens with a target. Equal on all ranks
    of tensor parallel. Each update makes a new tensor, so that one that was taken stays as it is."""

    def __init__(self, *, z_loss: float, max_logits: int = MAX_LOGITS, tp_mesh: DeviceMesh | None = None) -> None:
        """`z_loss`: weight of the squared logsumexp. `max_logits`: the most that this rank holds at once."""
        super().__init__()
        self._z_loss = z_loss
        self._max_logits = max_logits
        self._tp_mesh = tp_mesh
        self.statistics = _nothing(torch.device("cpu"))

    def reset_statistics(self) -> None:
        """Forget the micro batches seen so far."""
        self.statistics = _nothing(self.statistics.device)

    def forward(self, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Sum of the losses of all tokens, z-loss included: a scalar in fp32, the same on all ranks of tensor parallel.

        `hidden`: [batch, seq, width]; with tensor parallel this rank's part of seq. `weight`: [vocabulary, width], with tensor
        parallel a DTensor divided by rows. `labels`: int64 [batch, seq], whole on every rank: the token that follows each, or
        -100 for none. Raises ValueError for shapes that do not fit, RuntimeError for a label outside the vocabulary (on CUDA:
        a device-side assertion).
        """
        vocabulary = weight.shape[0]
        rows, group, first_token = vocabulary, None, 0
        if self._tp_mesh is not None:
            hidden = _gather_sequence(hidden, self._tp_mesh, labels.shape[1])
            rows, group = ceil(vocabulary / self._tp_mesh.size()), self._tp_mesh.get_group()
            weight, first_token = _own_rows(weight, self._tp_mesh)
        elif isinstance(weight, DTensor):
            raise ValueError(f"weight is divided ({weight.placements}), but the loss was built without tensor parallel")
        if hidden.shape[:2] != labels.shape:
            raise ValueError(f"hidden {list(hidden.shape)} and labels {list(labels.shape)} must have the same tokens")
        _check_labels(labels, vocabulary)
        loss, statistics = linear_cross_entropy(
            hidden.flatten(0, 1),
            weight,
            labels.flatten(),
            z_loss=self._z_loss,
            chunk=chunk_size(labels.numel(), self._max_logits // rows),
            group=group,
            first_token=first_token,
        )
        self._count(statistics)
        return loss

    def _count(self, found: torch.Tensor) -> None:
        before = self.statistics.to(found.device)
        self.statistics = before + found
        self.statistics[2] = torch.maximum(before[2], found[2])


def chunk_size(tokens: int, most: int) -> int:
    """Tokens to score at a time: at most `most` (at least 1), in equal chunks where that does not make them much smaller."""
    fewest = ceil(tokens / max(1, most))
    for chunks in range(fewest, min(2 * fewest, tokens) + 1):
        if tokens % chunks == 0:
            return tokens // chunks
    return ceil(tokens / fewest)


def _gather_sequence(hidden: torch.Tensor, mesh: DeviceMesh, seq: int) -> torch.Tensor:
    """[batch, seq / tp, width] of each rank -> [batch, seq, width] on all; the backward pass sums what the ranks found."""
    if hidden.shape[1] * mesh.size() != seq:
        raise ValueError(
            f"hidden {list(hidden.shape)} of each of {mesh.size()} ranks is not a whole sequence of {seq}: data.seq_len must "
            "be a multiple of parallel.tp"
        )
    whole = DTensor.from_local(hidden, mesh, [Shard(1)]).redistribute(mesh, [Replicate()])
    return whole.to_local(grad_placements=[Partial()])


def _own_rows(weight: torch.Tensor, mesh: DeviceMesh) -> tuple[torch.Tensor, int]:
    """This rank's rows of the head, and the number of the first."""
    if not isinstance(weight, DTensor) or weight.placements != (Shard(0),) or weight.device_mesh.size() != mesh.size():
        placements = weight.placements if isinstance(weight, DTensor) else "plain"
        raise ValueError(f"weight is {placements}, must be a DTensor whose rows are divided over {mesh.size()} ranks")
    vocabulary = weight.shape[0]
    if ceil(vocabulary / mesh.size()) * (mesh.size() - 1) >= vocabulary:
        raise ValueError(
            f"model.vocab_size={vocabulary} can't be divided over parallel.tp={mesh.size()}: a rank would have no row"
        )
    _, offset = compute_local_shape_and_global_offset(weight.shape, weight.device_mesh, weight.placements)
    return weight.to_local(grad_placements=weight.placements), offset[0]


def _check_labels(labels: torch.Tensor, vocabulary: int) -> None:
    known = (labels == IGNORED) | ((labels >= 0) & (labels < vocabulary))
    torch._assert_async(
        known.all(), f"a label is outside the vocabulary (model.vocab_size={vocabulary}); check the data"
    )


def _nothing(device: torch.device) -> torch.Tensor:
    statistics = torch.zeros(4, dtype=torch.float64, device=device)
    statistics[2].fill_(-torch.inf)
    return statistics
