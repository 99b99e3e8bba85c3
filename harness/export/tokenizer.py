"""The tokenizer that goes with an exported model."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import DataConfig
from harness.data.check import find_tokenizer
from harness.data.errors import DataError
from harness.data.token_files import inspect_source
from harness.data.tokenizer_files import TokenizerFacts, locate_tokenizer, read_tokenizer
from harness.export.errors import ExportError

CONFIG = "tokenizer_config.json"
FILES = (
    "tokenizer.json", CONFIG, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json",
    "merges.txt", "tokenizer.model",
)  # fmt: skip
"""What transformers may look for; only the first must be there."""


@dataclass(frozen=True)
class Tokenizer:
    """What the model's config says of its tokenizer, and where its files are. None: not known."""

    facts: TokenizerFacts | None
    eos_token_id: int | None
    bos_token_id: int | None
    pad_token_id: int | None

    def copy_files(self, folder: Path) -> None:
        """Put the files into `folder`, with a config that makes transformers use them as they are. Raises OSError."""
        if self.facts is None:
            return
        for name in FILES:
            source = self.facts.path if name == "tokenizer.json" else self.facts.path.with_name(name)
            if source.is_file():
                shutil.copyfile(source, folder / name)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": self.facts.eos_token}
        (folder / CONFIG).write_text(json.dumps({**config, **_read_config(self.facts.path)}, indent=2) + "\n")


def find(given: str | None, data: DataConfig, vocab_size: int) -> tuple[Tokenizer, str | None]:
    """The tokenizer `given` on the command line, else the one behind `data`; and a remark where there is none.

    Raises ExportError where the one that is given can't be used.
    """
    path = locate_tokenizer(given) if given is not None else _behind(data)
    if path is None and given is not None:
        raise ExportError(f"--tokenizer {given}: no tokenizer.json there, nor in the hub cache of this machine")
    try:
        facts = read_tokenizer(path) if path is not None else None
    except DataError as error:
        raise ExportError(str(error)) from error
    if facts is not None and facts.size > vocab_size:
        raise ExportError(
            f"the tokenizer {facts.path} has {facts.size} tokens, the model model.vocab_size={vocab_size}: it is not the "
            "one that made the run's data; give that with --tokenizer DIR"
        )
    eos = data.eos_token_id if data.eos_token_id is not None or facts is None else facts.eos_token_id
    if facts is None:
        return Tokenizer(None, eos, None, None), (
            "no tokenizer was put in: neither data.tokenizer nor the token files lead to one on this machine; "
            "--tokenizer DIR adds it"
        )
    special = _read_config(facts.path)
    return Tokenizer(facts, eos, _id_of(special.get("bos_token"), facts), _id_of(special.get("pad_token"), facts)), None


def _behind(data: DataConfig) -> Path | None:
    if (path := find_tokenizer(data)) is not None:
        return path
    for name, source in data.sources.items():
        opened, _ = inspect_source(name, source.path)
        if opened is not None and (path := find_tokenizer(data, opened)) is not None:
            return path
    return None


def _read_config(tokenizer: Path) -> dict[str, Any]:
    """tokenizer_config.json beside `tokenizer`; empty where there is none."""
    try:
        content = json.loads(tokenizer.with_name(CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _id_of(token: Any, facts: TokenizerFacts) -> int | None:
    from tokenizers import Tokenizer as Library

    content = token.get("content") if isinstance(token, dict) else token
    return Library.from_file(str(facts.path)).token_to_id(content) if isinstance(content, str) else None
