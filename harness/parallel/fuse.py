"""One matrix product for queries, keys and values instead of three: keys and values alone are too narrow to be fast.

The weights stay apart, as transformers and checkpoints know them; they are put together as they are used.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


def fuse_projections(attention: Any) -> None:
    """Let the first of an attention's three projections compute all of them, in place.

    `attention` calls q_proj, k_proj and v_proj once each, in this order, on the same input.
    """
    projections: list[nn.Linear] = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert all(type(projection) is nn.Linear and projection.bias is None for projection in projections)
    sizes = [projection.out_features for projection in projections]
    made: list[torch.Tensor] = []

    def all_three(x: torch.Tensor) -> torch.Tensor:
        query, key, value = linear(x, torch.cat([projection.weight for projection in projections])).split(sizes, -1)
        made.extend((value, key))
        return query

    def next_made(x: torch.Tensor) -> torch.Tensor:
        return made.pop()

    attention.q_proj.forward = all_three
    attention.k_proj.forward = attention.v_proj.forward = next_made
