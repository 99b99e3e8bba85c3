"""Muon: momentum whose matrix is orthogonalised before it is applied (Jordan et al., 2024).

Scaled as in Moonshot's "Muon is scalable for LLM training" (2025), so that the size of an update, and with it learning
rate and weight decay, is AdamW's.
"""

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from harness.config.schema import OptimConfig
from harness.optim.adam import keep_where_skipped
from harness.optim.adamw import AdamW
from harness.optim.base import Optimizer, constant, for_device, write_copies, zeros_like
from harness.optim.rules import decays, is_layer_matrix
from harness.optim.shards import flat, flat_gradient
from harness.parallel.local import NO_COPIES, Copies, divided_like, local, own_part

ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of x, x^3, x^5: Jordan's choice, steep at 0, which takes singular values to about 0.7 to 1.2."""
ADAMW_RMS = 0.2
"""Root mean square of AdamW's typical update, by Moonshot's measurement."""


def orthogonalise(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest (half-)orthogonal matrix, roughly: every singular value near 1. In `matrix`'s own type and shape."""
    a, b, c = QUINTIC
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    x = wide / torch.linalg.vector_norm(wide, dtype=torch.float32).clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if matrix.size(0) > matrix.size(1) else x


def momentum_(
    gradient: torch.Tensor, buffer: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, weight: torch.Tensor
) -> torch.Tensor:
    """Take the gradient into the running mean in place, with `weight` (1 - momentum); Nesterov's look ahead from there.

    Flat tensors of one length; scale, skip (bool) and weight 0-dim.
    """
    scaled = gradient.float() * scale
    mean = torch.lerp(buffer, scaled, weight)
    keep_where_skipped(skip, buffer, mean)
    return torch.lerp(mean, scaled, weight)


def apply_(
    parameter: torch.Tensor, update: torch.Tensor, lr: torch.Tensor, size: torch.Tensor, decay: torch.Tensor,
    skip: torch.Tensor,
) -> None:  # fmt: skip
    """Take the step, `size` (0-dim) times `update`, in place."""
    keep_where_skipped(skip, parameter, parameter * (1 - lr * decay) - lr * size * update.float())


class Muon(Optimizer):
    """Muon for the layers' matrices, AdamW for all else."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        super().__init__(parameters)
        self._matrices = {name: p for name, p in self.parameters.items() if is_layer_matrix(name, p)}
        self._others = AdamW({name: p for name, p in self.parameters.items() if name not in self._matrices}, config)
        self.state = {
            name: {"momentum_buffer": zeros_like(p)} if name in self._matrices else self._others.state[name]
            for name, p in self.parameters.items()
        }
        # products of bf16 are what GPUs are fast in, and exact enough: what comes out is near orthogonal either way
        self._product_type = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        self._weight = constant(1 - config.momentum, self.device)
        self._size = {
            name: constant(ADAMW_RMS * math.sqrt(max(p.shape)), self.device) for name, p in self._matrices.items()
        }
        decay, none = constant(config.weight_decay, self.device), constant(0.0, self.device)
        self._decay = {
            name: decay if decays(name, p, config.decay_embeddings) else none for name, p in self._matrices.items()
        }

    @torch.no_grad()
    def step(self, lr: torch.Tensor, scale: torch.Tensor, skip: torch.Tensor, copies: Copies = NO_COPIES) -> None:
        self._others.step(lr, scale, skip, copies)
        skipped = skip != 0
        accumulate, apply = for_device(momentum_, self.device), for_device(apply_, self.device)
        for name, parameter in self._matrices.items():
            if parameter.grad is None:
                continue
            buffer = flat(self.state[name]["momentum_buffer"])
            wanted = accumulate(flat_gradient(parameter.grad), buffer, scale, skipped, self._weight)
            update = self._orthogonal_part(parameter, wanted.to(self._product_type))
            if update.numel():
                apply(flat(parameter), update, lr, self._size[name], self._decay[name], skipped)
        write_copies(self._matrices, copies)

    def _orthogonal_part(self, parameter: nn.Parameter, wanted: torch.Tensor) -> torch.Tensor:
        """This rank's part, flat, of the whole tensor orthogonalised. `wanted`: its part of that. Collective."""
        part = wanted.view(local(parameter).shape)
        if not isinstance(parameter, DTensor):
            return orthogonalise(part).reshape(-1)
        return orthogonalise(divided_like(part, parameter).full_tensor())[own_part(parameter)].reshape(-1)
