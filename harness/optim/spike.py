"""Judges, without a word to the host, whether a step is to be skipped: its loss or gradient norm is not like the last ones'."""

import torch

LEAST_DEVIATION = 1e-3
"""Standard deviations below this share of the mean count as that much: a series that hardly moves has no spikes."""


class SpikeDetector:
    """Compares each step with the last `window` steps that were accepted.

    Its memory consists of tensors that belong into checkpoints, so that a resumed run judges as if it had never stopped.
    """

    def __init__(self, window: int, sigmas: float, patience: int, device: torch.device) -> None:
        """`sigmas` 0: only values that are not finite are refused. So many spikes in a row as `patience` are none, but what
        the loss now is (a new stage's data, say): from there on steps are judged by the new level.
        Raises ValueError for a window without a deviation.
        """
        if window < 2:
            raise ValueError(f"train.spike_window={window}: a standard deviation needs at least 2 steps")
        self._sigmas = sigmas
        self._window = window
        self._patience = patience
        self._ring = torch.zeros(2, window, dtype=torch.float32, device=device)
        self._count = torch.zeros((), dtype=torch.int64, device=device)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)
        self._slots = torch.arange(window, device=device)

    @torch.no_grad()
    def judge(self, loss: torch.Tensor, grad_norm: torch.Tensor) -> torch.Tensor:
        """Whether to skip the step (0-dim bool); remembers it if not. Both 0-dim, and the same on all ranks.

        Skip where either is not finite, or lies more than `sigmas` standard deviations above the mean of the window, once
        the window is full.
        """
        values = torch.stack([loss, grad_norm]).float()
        finite = values.isfinite().all()
        skip = ~finite
        if self._sigmas > 0:
            past = self._ring.double()
            mean = past.mean(dim=1)
            deviation = torch.maximum(past.std(dim=1), LEAST_DEVIATION * mean.abs())
            spikes = (values > mean + self._sigmas * deviation).any()
            skip = skip | (spikes & (self._count >= self._window))
        accepted = ~skip
        oldest = self._slots == self._count % self._window
        self._ring.copy_(torch.where(accepted & oldest, values[:, None], self._ring))
        self._count += accepted
        if self._sigmas > 0:
            self._forget_after(skip & finite, accepted)
        return skip

    def _forget_after(self, spike: torch.Tensor, accepted: torch.Tensor) -> None:
        """Count spikes in a row (what is not finite neither counts nor ends the row); after enough of them, start anew."""
        self._in_a_row.add_(spike).mul_(~accepted)
        stays = self._in_a_row < self._patience
        for memory in (self._ring, self._count, self._in_a_row):
            memory.mul_(stays)

    def state(self) -> dict[str, torch.Tensor]:
        """The live memory: "ring", fp32 [2, window] of losses and norms; "count" of accepted steps and spikes "in_a_row", 0-dim
        int64."""
        return {"ring": self._ring, "count": self._count, "in_a_row": self._in_a_row}
