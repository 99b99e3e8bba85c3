"""Training a byte-level BPE with the tokenizers library."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EOS_TOKEN = "<|endoftext|>"
"""Ends each document where the tokenizer is trained here."""
DEFAULT_VOCAB_SIZE = 4096
MIN_VOCAB_SIZE = 257
"""Every byte and the end-of-document token."""
PRE_TOKENIZERS = {
    "gpt2": None,
    "llama3": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "digits": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
"""How text is cut before pairs are merged: gpt2 keeps numbers whole, llama3 cuts them into up to three digits, digits into one.
None: the pattern that the library's byte-level cut brings."""


def train_tokenizer(texts: Iterator[str], path: Path, vocab_size: int, pre_tokenizer: str = "gpt2") -> None:
    """Save a tokenizer of `vocab_size` tokens, or fewer where the text has no more to merge, at `path`.

    `tokenizer_config.json` beside it names the end-of-document token, so that transformers loads the folder.
    """
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import ByteLevel as ByteLevelDecoder
    from tokenizers.models import BPE
    from tokenizers.pre_tokenizers import ByteLevel, PreTokenizer, Sequence, Split
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(BPE())
    cut: PreTokenizer = ByteLevel(add_prefix_space=False)
    if pattern := PRE_TOKENIZERS[pre_tokenizer]:
        cut = Sequence([Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.pre_tokenizer = cut
    tokenizer.decoder = ByteLevelDecoder()
    trainer = BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS_TOKEN], initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS_TOKEN}
    path.with_name("tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
