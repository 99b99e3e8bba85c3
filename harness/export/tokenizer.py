"""The tokenizer that goes with an exported model: it cuts text as the training data was cut.

What its file asks for that the data did not have is left out: truncation, padding, and tokens around a text. A token that
begins documents stays if the run's documents begin with it.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import DataConfig
from harness.data.check import find_tokenizer
from harness.data.document_starts import document_starts
from harness.data.errors import DataError
from harness.data.token_files import inspect_source
from harness.data.tokenizer_files import TokenizerFacts, copy_templates, locate_tokenizer, read_tokenizer
from harness.export.errors import ExportError

CONFIG = "tokenizer_config.json"
FILES = (
    "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model",
)  # fmt: skip
"""What transformers may look for beside tokenizer.json, its config and chat templates."""
ADDING = ("TemplateProcessing", "BertProcessing", "RobertaProcessing")
"""Post-processors of tokenizer.json that add tokens around a text."""
PROBE = "a"
SAMPLES = ("Two words", "  def f(x):\n\treturn  x", "naïve 你好 🙂 1234567.89", "")
"""Texts that transformers and the training data must cut alike."""


@dataclass(frozen=True)
class Tokenizer:
    """What the model's config says of its tokenizer, and where its files are. None: not known."""

    facts: TokenizerFacts | None
    eos_token_id: int | None
    bos_token_id: int | None
    """Of the token that begins the run's documents; None if they begin with their text."""
    pad_token_id: int | None

    def write_files(self, folder: Path) -> None:
        """Put the files into `folder`, with a config that makes transformers use them as they are. Raises OSError."""
        if self.facts is None:
            return
        for name in FILES:
            if (source := self.facts.path.with_name(name)).is_file():
                shutil.copyfile(source, folder / name)
        copy_templates(self.facts.path.parent, folder)
        content = as_in_training(json.loads(self.facts.path.read_text(encoding="utf-8")), self._bos_token())
        (folder / "tokenizer.json").write_text(
            json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8"
        )
        config = {"eos_token": self.facts.eos_token, **_read_config(self.facts.path)}
        for key in ("auto_map", "add_bos_token", "add_eos_token"):
            config.pop(key, None)
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        if self.bos_token_id is None:  # transformers would add what older configs name
            config["add_bos_token"] = config["add_eos_token"] = False
        (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")

    def remarks_about(self, folder: Path) -> list[str]:
        """Says so if transformers, with the files in `folder`, cuts text otherwise than the training data was cut."""
        if self.facts is None:
            return []
        from transformers import AutoTokenizer

        library = _library(self.facts.path)
        library.no_truncation()
        library.no_padding()
        begins = [] if self.bos_token_id is None else [self.bos_token_id]
        try:
            loaded = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            for text in SAMPLES:
                expected = begins + library.encode(text, add_special_tokens=False).ids
                if (found := loaded(text)["input_ids"]) != expected:
                    return [
                        f"the tokenizer in the folder cuts {text!r} into {found}, the training data into {expected}; report this"
                    ]
        except Exception as error:  # transformers raises whatever its own loading does
            return [f"transformers can't load the tokenizer in the folder: {type(error).__name__}: {error}"]
        return []

    def _bos_token(self) -> tuple[int, str] | None:
        if self.facts is None or self.bos_token_id is None:
            return None
        return self.bos_token_id, str(_library(self.facts.path).id_to_token(self.bos_token_id))


def as_in_training(content: dict[str, Any], begins: tuple[int, str] | None) -> dict[str, Any]:
    """A tokenizer.json that encodes all of a text, after the token `begins` (id and text) if there is one, and nothing more."""
    return {**content, "truncation": None, "padding": None, "post_processor": _processor(content, begins)}


def _processor(content: dict[str, Any], begins: tuple[int, str] | None) -> dict[str, Any] | None:
    old = content.get("post_processor") or {}
    parts = old.get("processors", []) if old.get("type") == "Sequence" else [old] if old else []
    kept = [part for part in parts if part.get("type") not in ADDING]
    if begins is not None:
        number, text = begins
        special = {"SpecialToken": {"id": text, "type_id": 0}}
        first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
        kept.append(
            {
                "type": "TemplateProcessing",
                "single": [special, first],
                "pair": [special, first, second],
                "special_tokens": {text: {"id": text, "ids": [number], "tokens": [text]}},
            }
        )
    if len(kept) < 2:
        return kept[0] if kept else None
    return {"type": "Sequence", "processors": kept}


def find(given: str | None, data: DataConfig, vocab_size: int) -> tuple[Tokenizer, list[str]]:
    """The tokenizer `given` on the command line, else the one behind `data`; and remarks for the user.

    Raises ExportError if the one that is given can't be used.
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
        return Tokenizer(None, eos, None, None), [
            "no tokenizer was put in: neither data.tokenizer nor the token files lead to one on this machine; "
            "--tokenizer DIR adds it"
        ]
    special = _read_config(facts.path)
    begins, remarks = _begins_documents(facts.path, special.get("bos_token"), data)
    return Tokenizer(facts, eos, begins, _id_of(special.get("pad_token"), facts.path)), remarks


def _begins_documents(path: Path, named: Any, data: DataConfig) -> tuple[int | None, list[str]]:
    """Id of the token that begins the run's documents, if one does; and what the user should know about it."""
    added = _added_before(path)
    token = added if added is not None else _id_of(named, path)
    if token is None:
        return None, []
    text = _library(path).id_to_token(token)
    begun, seen = 0, 0
    for name, source in data.sources.items():
        opened, _ = inspect_source(name, source.path)
        try:
            starts = document_starts(opened, 1) if opened is not None else []
        except OSError:
            continue
        seen += len(starts)
        begun += starts.count((token,))
    if not seen:
        kept = "adds it still" if added is not None else "does not add it"
        return added, [
            f"the run's data can't be read here: whether its documents begin with {text} is not known, the tokenizer {kept}"
        ]
    if begun * 2 <= seen:
        mixed = f"; {begun} of {seen} that were looked at do" if begun else ""
        if added is None and not mixed:
            return None, []
        return None, [
            f"the run's documents do not begin with {text}{mixed}: the tokenizer in the folder does not add it"
        ]
    mixed = f"; {seen - begun} of {seen} that were looked at do not" if begun < seen else ""
    return token, [f"the run's documents begin with {text}{mixed}: the tokenizer in the folder adds it"]


def _added_before(path: Path) -> int | None:
    """The first token that the tokenizer's own post-processor puts before a text."""
    library = _library(path)
    library.no_padding()
    whole, bare = library.encode(PROBE).ids, library.encode(PROBE, add_special_tokens=False).ids
    return int(whole[0]) if len(whole) > len(bare) and whole[: len(bare)] != bare else None


def _behind(data: DataConfig) -> Path | None:
    if (path := find_tokenizer(data)) is not None:
        return path
    for name, source in data.sources.items():
        opened, _ = inspect_source(name, source.path)
        if opened is not None and (path := find_tokenizer(data, opened)) is not None:
            return path
    return None


def _read_config(tokenizer: Path) -> dict[str, Any]:
    """tokenizer_config.json beside `tokenizer`; empty if there is none."""
    try:
        content = json.loads(tokenizer.with_name(CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _id_of(token: Any, path: Path) -> int | None:
    content = token.get("content") if isinstance(token, dict) else token
    found: int | None = _library(path).token_to_id(content) if isinstance(content, str) else None
    return found


def _library(path: Path) -> Any:
    from tokenizers import Tokenizer as Library

    return Library.from_file(str(path))
