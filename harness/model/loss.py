"""The model as the trainer calls it: tokens in, sum of the next-token losses out."""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from harness.model.family import MAX_LOGITS


class LossModel(nn.Module):
    """Wraps a causal language model so that all logits never exist at once; the root of the sharded model."""

    def __init__(self, lm: PreTrainedModel, max_logits: int = MAX_LOGITS) -> None:
        super().__init__()
        self.lm = lm
        self._chunk = max(1, max_logits // lm.config.vocab_size)

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor, **attention: Any
    ) -> torch.Tensor:
        """Sum over all tokens of the cross-entropy in fp32 (a scalar). All inputs are int64 [batch, seq_len]; `labels` are
        already shifted, and -100 is left out."""
        out = self.lm.model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **attention)
        hidden, targets = out.last_hidden_state.flatten(0, 1), labels.flatten()
        if len(targets) <= self._chunk:
            return self._score(hidden, targets)
        pieces = zip(hidden.split(self._chunk), targets.split(self._chunk), strict=True)
        losses = [checkpoint(self._score, h, t, use_reentrant=False) for h, t in pieces]
        return torch.stack(losses).sum()

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return cross_entropy(self.lm.lm_head(hidden).float(), targets, reduction="sum")
