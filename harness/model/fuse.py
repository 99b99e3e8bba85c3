"""One matrix product for queries, keys and values instead of three: keys and values alone are too narrow to be fast.

The weights stay apart, as transformers and checkpoints know them; they are put together as they are used.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear


def concatenated(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """x [..., in] by weights [out, in] each, as one product: [..., sum of out]."""
    return linear(x, torch.cat(weights))


def fuse_projections(attention: Any, product: Callable[..., torch.Tensor] = concatenated) -> None:
    """Let an attention of transformers compute its three projections in one product (see `concatenated`), in place.

    It goes on calling them one by one, but is given their common result as its input, of which each returns its part.
    (Nothing is kept between the calls: torch.compile could not follow that into a layer that is recomputed.)
    """
    projections: list[Any] = [attention.q_proj, attention.k_proj, attention.v_proj]
    assert all(type(projection) is nn.Linear for projection in projections)
    apart, biased = attention.forward, projections[0].bias is not None

    def together(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        products = product(hidden_states, *(projection.weight for projection in projections))
        if biased:
            products = products + torch.cat([projection.bias for projection in projections])
        return apart(products, *args, **kwargs)

    attention.forward = together
    start = 0
    for projection in projections:
        # values go to attention as they are, which keeps them for the backward pass: as a view they would keep everything
        projection.forward = _part(start, start + projection.out_features, copy=projection is attention.v_proj)
        start += projection.out_features


def _part(start: int, stop: int, copy: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda products: products[..., start:stop].clone() if copy else products[..., start:stop]
