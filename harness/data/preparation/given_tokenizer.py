"""The tokenizer that the user gave: checked, and kept beside the token files."""

import json
import shutil
from pathlib import Path

from harness.data.errors import DataError
from harness.data.tokenizer_files import TokenizerFacts, locate_tokenizer, read_tokenizer


def given_tokenizer(name: str, eos_token: str | None) -> TokenizerFacts:
    """What its files say. Raises DataError where it is none, or nothing names its end-of-document token."""
    path = locate_tokenizer(name)
    if path is None:
        raise DataError(f"--tokenizer {name}: no tokenizer.json there. Give its folder or the file.")
    facts = read_tokenizer(path)
    if eos_token is None and facts.eos_token_id is None:
        raise DataError(
            f"--tokenizer {name}: names no end-of-document token"
            + (f" of its own ({facts.eos_token} is not in its vocabulary)" if facts.eos_token else "")
            + ". Pass it with --eos-token, as text: --eos-token '</s>'."
        )
    return facts


def copy_tokenizer(name: str, eos_token: str | None, target: Path) -> None:
    """Copy it to `target` (a tokenizer.json), with the end-of-document token that is used. Raises DataError."""
    from tokenizers import Tokenizer

    facts = given_tokenizer(name, eos_token)
    try:
        Tokenizer.from_file(str(facts.path))
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"--tokenizer {name}: the tokenizers library cannot load it: {error}") from None
    folder = target.parent
    folder.mkdir(exist_ok=True)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        source = facts.path if file == "tokenizer.json" else facts.path.with_name(file)
        if source.is_file():
            shutil.copyfile(source, folder / file)
    if eos_token:
        config = folder / "tokenizer_config.json"
        content = json.loads(config.read_text()) if config.is_file() else {}
        config.write_text(json.dumps(content | {"eos_token": eos_token}, indent=2) + "\n")
    if read_tokenizer(target).eos_token_id is None:
        raise DataError(f"--eos-token {eos_token}: not in the vocabulary of {facts.path}. Pass one that is.")
