"""Context parallel: each sequence is shared out between `cp` ranks.

With causal attention the last tokens of a sequence cost most. A sequence is therefore cut into 2 x cp chunks, and every
rank holds one from the front and its mirror image from the back, so that all have the same work.
"""

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol

# newer versions of torch have given it another name, and warn at each call by the old one
_all_gather = getattr(funcol, "all_gather_single_autograd", None) or funcol.all_gather_tensor_autograd


def own_chunks(cp: int, cp_rank: int) -> list[int]:
    """Which chunks of every sequence rank `cp_rank` holds, in the order it holds them: two of 2 x cp; [0] where cp=1."""
    return [0] if cp == 1 else [cp_rank, 2 * cp - 1 - cp_rank]


def shard_sequence(array: np.ndarray, cp: int, cp_rank: int) -> np.ndarray:
    """This rank's tokens of `array` [batch, seq]: [batch, seq / cp], contiguous. With cp=1 the array itself.

    Raises ValueError where 2 x cp does not divide the sequence.
    """
    if cp == 1:
        return array
    batch, seq_len = array.shape
    if seq_len % (2 * cp):
        raise ValueError(f"parallel.cp={cp}: 2 x cp={2 * cp} must divide the sequence's {seq_len} tokens")
    chunks = array.reshape(batch, 2 * cp, -1)
    return np.ascontiguousarray(chunks[:, own_chunks(cp, cp_rank)]).reshape(batch, -1)


def gather_sequence(local: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """All tokens, in their true order, from each rank's share of them. Collective over `group`, also in the backward.

    `local` is [batch, heads, seq / cp, dim], the result [batch, heads, seq, dim], in memory as [batch, seq, heads, dim],
    which is what attention kernels read. The gradient of `local` is the sum over the ranks of what each wants of it,
    added up in the gradient's own dtype.
    """
    cp = dist.get_world_size(group)
    if cp == 1:
        return local
    batch, heads, tokens, dim = local.shape
    halves = local.reshape(batch, heads, 2, tokens // 2, dim).permute(2, 0, 3, 1, 4)
    gathered = _all_gather(halves.contiguous(), 0, group).unbind(0)  # 2 x cp of [batch, tokens / 2, heads, dim]
    held = [chunk for rank in range(cp) for chunk in own_chunks(cp, rank)]
    ordered = [gathered[held.index(chunk)] for chunk in range(2 * cp)]
    return torch.cat(ordered, dim=1).transpose(1, 2)
