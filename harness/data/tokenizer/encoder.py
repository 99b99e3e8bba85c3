"""A tokenizer.json as pretraining uses it: a document becomes all of its tokens, and nothing but them and its frame.

Its file may ask for things that serve inference and spoil training data: truncation and padding are switched off, and so is
BPE dropout. Special tokens that a document's text spells out are text: a token that ends documents stands at their ends
alone. What the file's post-processor adds (a token that begins documents, say) is added, as transformers does, and the
end-of-document token after it.
"""

import json
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from harness.data.errors import DataError

PROBES = ("a", "0", " ", "。")
"""Texts of which one has a token in any vocabulary: they show on which side of a text tokens are added."""


@dataclass(frozen=True)
class Encoder:
    """Text in, ids out."""

    tokenizer: Tokenizer
    before: tuple[int, ...]
    """Begin each document."""
    after: tuple[int, ...]
    """End each document; the last one is the end-of-document token, where one was given."""
    left_out: int | None
    """The end-of-document token, where the post-processor would begin documents with it."""
    model: dict[str, Any]
    """The `model` of tokenizer.json without its vocabulary."""

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text's document, frame included."""
        encoded = self.tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [[*self.before, *cut.ids, *self.after] for cut in encoded]

    @cached_property
    def special(self) -> dict[int, str]:
        """Id -> text of the special tokens."""
        return {i: token.content for i, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}

    @cached_property
    def unknown(self) -> int | None:
        """The token that stands for text which the vocabulary lacks."""
        if self.model.get("unk_id") is not None:
            return int(self.model["unk_id"])
        return self.tokenizer.token_to_id(self.model["unk_token"]) if self.model.get("unk_token") else None

    def spelled_out(self, text: str) -> Counter[str]:
        """Special tokens that a text spells out -> how often."""
        return Counter(self._special_texts.findall(text)) if self._special_texts else Counter()

    @cached_property
    def _special_texts(self) -> re.Pattern[str] | None:
        texts = sorted(filter(None, self.special.values()), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def names(self, ids: tuple[int, ...]) -> list[str]:
        """Their texts."""
        return [str(self.tokenizer.id_to_token(i)) for i in ids]


def load_tokenizer(path: Path) -> Tokenizer:
    """As this module's head says. Raises DataError where the tokenizers library cannot load it."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{path}: the tokenizers library cannot load it: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    if getattr(tokenizer.model, "dropout", None):
        tokenizer.model.dropout = None
    return tokenizer


def open_encoder(path: Path, eos_token: str | None) -> Encoder:
    """The encoder of a tokenizer.json. `eos_token` ends each document, unless the post-processor ends it with that anyway.

    Raises DataError for a file that is none, or has no such token.
    """
    tokenizer = load_tokenizer(path)
    before, after = _added(tokenizer)
    left_out = None
    if eos_token is not None:
        eos = tokenizer.token_to_id(eos_token)
        if eos is None:
            raise DataError(f"{path}: no token {eos_token!r} in its vocabulary")
        left_out = eos if eos in before else None
        before = tuple(i for i in before if i != eos)  # in front it would look like a document of its own
        if after[-1:] != (eos,):
            after = (*after, eos)
    model = json.loads(path.read_text(encoding="utf-8"))["model"]
    settings = {key: model[key] for key in model if key not in ("vocab", "merges")}
    return Encoder(tokenizer, before, after, left_out, settings)


def _added(tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the post-processor adds before and after a text."""
    for probe in PROBES:
        encoded = tokenizer.encode(probe)
        own = [at for at, added in enumerate(encoded.special_tokens_mask) if not added]
        if own:
            return tuple(encoded.ids[: own[0]]), tuple(encoded.ids[own[-1] + 1 :])
    return tuple(tokenizer.encode("").ids), ()


def remarks(path: Path, encoder: Encoder) -> list[str]:
    """What a user should know of how documents are encoded with this tokenizer; a sentence each."""
    content = json.loads(path.read_text(encoding="utf-8"))
    found = []
    if truncation := content.get("truncation"):
        found.append(
            f"tokenizer.json truncates to {truncation.get('max_length')} tokens: not applied, documents are encoded whole"
        )
    if content.get("padding"):
        found.append("tokenizer.json pads: not applied")
    if encoder.model.get("dropout"):
        found.append(f"tokenizer.json has BPE dropout {encoder.model['dropout']}: not applied")
    if encoder.before:
        found.append(
            f"every document begins with {' '.join(encoder.names(encoder.before))}, which the tokenizer's post-processor adds"
        )
    if encoder.left_out is not None:
        found.append(
            f"the tokenizer's post-processor begins documents with {encoder.names((encoder.left_out,))[0]}, which ends them here: "
            "not added in front"
        )
    if len(encoder.after) > 1:
        found.append(
            f"every document ends with {' '.join(encoder.names(encoder.after))}; the tokenizer's post-processor adds the first "
            f"{len(encoder.after) - 1}"
        )
    if _drops_unknown(content):
        found.append(
            "characters that the vocabulary lacks are dropped without a trace: the tokenizer has neither an unknown token nor "
            "byte fallback"
        )
    return found


def _drops_unknown(content: dict[str, Any]) -> bool:
    model = content["model"]
    if model.get("type") != "BPE" or model.get("unk_token") or model.get("byte_fallback"):
        return False
    return '"ByteLevel"' not in json.dumps([content.get("pre_tokenizer"), content.get("normalizer")])
