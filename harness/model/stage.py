"""One stage of a model: the part that a rank computes in one go. Without a pipeline, the whole model is one stage.

The layers are transformers' own, driven here one by one, so that a stage can begin and end anywhere and its tokens can be
any part of their sequences. Parameters keep the names that they have in the whole model.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from harness.config.schema import ModelConfig
from harness.model.build import build_on_meta
from harness.model.rotary import fix_frequencies
from harness.model.token_loss import TokenLoss

TIED_HEAD = ("lm_head.weight", "model.embed_tokens.weight")
"""Name of the output head's weight in a last stage without the embedding, and of the embedding that it is tied to."""


class Stage(nn.Module):
    """Layers `layers` of a causal language model; the first stage embeds tokens, the last one computes the loss."""

    def __init__(self, lm: PreTrainedModel, layers: range, loss: TokenLoss | None) -> None:
        """Keep only this stage's modules of `lm`. `loss` belongs to the last stage and to no other."""
        super().__init__()
        self.is_first = layers.start == 0
        self.is_last = layers.stop == lm.config.num_hidden_layers
        assert self.is_last == (loss is not None)
        if not self.is_first:
            lm.model.embed_tokens = None
        if not self.is_last:
            lm.model.norm = lm.lm_head = None
        lm.model.layers = nn.ModuleDict({str(number): lm.model.layers[number] for number in layers})
        self.lm = lm
        self.loss = loss

    @property
    def layers(self) -> nn.ModuleDict:
        """The decoder layers by their number in the whole model."""
        return self.lm.model.layers

    def forward(
        self, x: torch.Tensor, *, position_ids: torch.Tensor, labels: torch.Tensor | None = None, **attention: Any
    ) -> torch.Tensor:
        """First stage: `x` is int64 [batch, seq]; others: what the stage before returned.

        Returns the hidden states [batch, seq, hidden] (with tensor parallel this rank's part of seq), or in the last stage
        the sum of the losses of all tokens: fp32 [1]. `labels` int64 [batch, seq] are the tokens that follow `x`; -100 is
        left out. `attention`: see `harness.model.attention.Attention.inputs`.
        """
        model = self.lm.model
        hidden = model.embed_tokens(x) if self.is_first else x
        position_embeddings = model.rotary_emb(hidden, position_ids)
        mask = attention.pop("attention_mask", None)
        for layer in self.layers.values():
            hidden = layer(
                hidden,
                attention_mask=mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                **attention,
            )
        if self.loss is None:
            return hidden
        # not a view: FSDP2 hangs its hooks on what leaves the module
        return torch.stack([self.loss(model.norm(hidden), self.lm.lm_head.weight, labels)])

    def to_empty(self, *, device: torch.device | str | int | None, recurse: bool = True) -> "Stage":
        """Memory for all weights on `device`. Tied weights stay one, which torch does not see to."""
        super().to_empty(device=device, recurse=recurse)
        if self.ties_inside:
            self.lm.lm_head.weight = self.lm.model.embed_tokens.weight
        return self

    @property
    def ties_inside(self) -> bool:
        """Whether embedding and head are one weight in this stage."""
        return bool(self.lm.config.tie_word_embeddings) and self.is_first and self.is_last

    def weights(self) -> dict[str, nn.Parameter]:
        """The stage's parameters by their names in the whole model; tied ones once, under the embedding's name."""
        head, embedding = TIED_HEAD
        tied = self.lm.config.tie_word_embeddings
        return {embedding if tied and name == head else name: p for name, p in self.lm.named_parameters()}


def build_stage(
    model: ModelConfig, attention: str, layers: range, loss: TokenLoss | None, seq_len: int | None = None
) -> Stage:
    """A stage in fp32 on the meta device, attending through transformers' `attention` implementation.

    `seq_len`: tokens of the sequences that it will see, by which scaled rotary positions are chosen; null:
    `model.max_position_embeddings`."""
    built = build_on_meta(model, attention)
    fix_frequencies(built.model.rotary_emb, seq_len or model.max_position_embeddings)
    return Stage(built, layers, loss)
