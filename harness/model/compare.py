"""Whether the harness computes with a Hugging Face folder what plain transformers computes with it: the same logits.

On the CPU in fp32, on a few tokens; and the rotary positions of a whole sequence, whose slow frequencies few tokens do not
show.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, PretrainedConfig
from transformers.utils import logging

from harness.config.schema import AttentionKernel, ModelConfig
from harness.model.attention import choose_attention
from harness.model.build import transformers_config
from harness.model.family import head_dim, parameters, slides
from harness.model.load import load_weights
from harness.model.rotary import fix_frequencies, frequencies
from harness.model.stage import build_stage
from harness.model.weight_files import NO_WEIGHT

TOKENS = 64
"""That logits are compared on."""
TOLERANCE = 1e-4
"""Largest difference of two logits, as a share of the largest logit. fp32 itself makes about 1e-6 of it."""

FP32 = 4


@dataclass(frozen=True)
class Comparison:
    """What came out; `same` if the folder is the same model in both."""

    tokens: int
    positions: int
    largest_difference: float
    """Of two logits."""
    largest_logit: float
    rotary_difference: float
    """Of two cosines or sines."""
    not_used: tuple[str, ...]
    """Tensors in the files that transformers' model has no place for."""
    not_found: tuple[str, ...]
    """Weights of the model that the files do not hold."""
    not_finite: tuple[str, ...]
    """Weights that hold NaN or infinity."""

    @property
    def same(self) -> bool:
        weights = not (self.not_found or self.not_used or self.not_finite)
        return weights and self.share <= TOLERANCE and self.rotary_difference <= TOLERANCE

    @property
    def share(self) -> float:
        """`largest_difference` as a share of the largest logit; NaN if a logit is not finite."""
        return self.largest_difference / max(self.largest_logit, 1e-30)

    def problems(self) -> list[str]:
        """One sentence for each thing that is not as it should be."""
        said = [
            f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
            for what, names in (
                ("weights that are not in the files", self.not_found),
                ("tensors in the files that the model does not use", self.not_used),
                ("weights that are not finite", self.not_finite),
            )
            if names
        ]
        if not self.share <= TOLERANCE:
            said.append(
                f"logits of {self.tokens} tokens differ by {self.largest_difference:.3g}, {self.share:.1e} of the largest; "
                f"expected at most {TOLERANCE:.0e} of it"
            )
        if not self.rotary_difference <= TOLERANCE:
            said.append(
                f"rotary positions up to {self.positions} differ by {self.rotary_difference:.3g}; expected {TOLERANCE:.0e}"
            )
        return said


def bytes_needed(model: ModelConfig) -> int:
    """Main memory that a comparison takes: one copy of the weights in fp32 at a time, and what is read meanwhile."""
    return parameters(model).total * FP32 * 3 // 2


def available_bytes() -> int:
    """Main memory that this machine could still give."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def compare_folder(model: ModelConfig, seq_len: int) -> Comparison:
    """`model` as training would start it from `model.init_from`, and that folder by plain transformers."""
    assert model.init_from is not None
    folder = Path(model.init_from).expanduser()
    changed = transformers_config(model) if model.init_from_changes else None
    return compare(model, folder, lambda stage: load_weights(stage, folder), seq_len, changed)


@torch.no_grad()
def compare(
    model: ModelConfig,
    folder: Path,
    load: Callable[[Any], None],
    seq_len: int,
    config: PretrainedConfig | None = None,
) -> Comparison:
    """`folder` by plain transformers, and `model` with what `load` puts into its only stage.

    `config` takes the place of the folder's own where the two are to differ (`model.init_from_changes`).
    Rotary positions are compared up to `seq_len`. Takes the time of reading the weights two times.
    """
    tokens = _tokens(model.vocab_size, min(TOKENS, seq_len))
    theirs, info = _by_transformers(folder, config)
    expected = theirs.eval()(tokens, use_cache=False).logits
    not_finite = tuple(name for name, weight in theirs.named_parameters() if not weight.isfinite().all())
    rotary = _rotary_difference(theirs, seq_len)
    not_used = tuple(sorted(name for name in info["unexpected_keys"] if not NO_WEIGHT.fullmatch(name)))
    del theirs
    found = _logits(model, tokens, load)
    return Comparison(
        tokens.shape[1],
        seq_len,
        (found - expected).abs().max().item(),
        expected.abs().max().item(),
        rotary,
        not_used,
        tuple(sorted(info["missing_keys"])),
        not_finite,
    )


def _by_transformers(folder: Path, config: PretrainedConfig | None) -> tuple[Any, dict[str, Any]]:
    """transformers' own model of the folder, and what it says of the tensors in it."""
    options: dict[str, Any] = {"config": config} if config is not None else {}
    with _quiet():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
            **options,
        )
    return loaded[0], loaded[1]


class _Logits(nn.Module):
    """In the place of a loss: keeps the logits."""

    def forward(self, hidden: torch.Tensor, weight: torch.Tensor, labels: None) -> torch.Tensor:
        self.logits = linear(hidden, weight)
        return hidden.new_zeros(())


def _logits(model: ModelConfig, tokens: torch.Tensor, load: Callable[[Any], None]) -> torch.Tensor:
    """fp32 [1, tokens, vocabulary] as training computes them."""
    length = tokens.shape[1]
    attention = choose_attention(
        torch.device("cpu"),
        torch.float32,
        wanted=AttentionKernel.sdpa,
        document_mask=False,
        head_dim=head_dim(model),
        heads=model.num_attention_heads,
        kv_heads=model.num_key_value_heads,
        window=model.sliding_window if slides(model, length) else None,
    )
    kept: Any = _Logits()
    stage = build_stage(model, attention.name, range(model.num_hidden_layers), kept, length).to_empty(device="cpu")
    load(stage)
    positions = np.arange(length)[None]
    stage(tokens, position_ids=torch.from_numpy(positions), labels=None, **attention.inputs(positions))
    logits: torch.Tensor = kept.logits
    return logits


def _rotary_difference(theirs: Any, seq_len: int) -> float:
    """Largest difference between transformers' cosines and sines of a sequence, and those that the harness trains with."""
    positions, like = torch.arange(seq_len)[None], torch.empty(1, 1)
    expected = torch.stack(theirs.model.rotary_emb(like, positions))
    own = type(theirs.model.rotary_emb)(theirs.config)
    fix_frequencies(own, seq_len)
    own.inv_freq.copy_(frequencies(own, torch.device("cpu")))
    return (torch.stack(own(like, positions)) - expected).abs().max().item()


def _tokens(vocab_size: int, count: int) -> torch.Tensor:
    return torch.randint(vocab_size, (1, count), generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' own tables of what did not fit, which `Comparison` says."""
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
