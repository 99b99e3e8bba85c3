"""The tokenizer that the user gave: checked, and kept beside the token files."""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from harness.data.errors import DataError
from harness.data.tokenizer_files import TokenizerFacts, copy_templates, locate_tokenizer, read_tokenizer

BESIDE = ("tokenizer_config.json", "special_tokens_map.json")
"""Files that may lie beside a tokenizer.json, and say what transformers should know of it."""


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


def tokenizer_files(path: Path) -> list[Path]:
    """The files of a tokenizer that say how it cuts text: `path` (a tokenizer.json, whatever its name) and those that go with it."""
    return [path, *(file for name in BESIDE if (file := path.with_name(name)).is_file())]


def digest(file: Path) -> str:
    """Changes with what a file of JSON says, not with how it is laid out; of any other file with its bytes."""
    content = file.read_bytes()
    with contextlib.suppress(ValueError):
        content = json.dumps(json.loads(content), sort_keys=True).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def copy_tokenizer(name: str, eos_token: str | None, target: Path) -> None:
    """Copy it to `target` (a tokenizer.json), with the end-of-document token that is used. Raises DataError."""
    from harness.data.tokenizer.encoder import load_tokenizer

    facts = given_tokenizer(name, eos_token)
    try:
        load_tokenizer(facts.path)
    except DataError as error:
        raise DataError(f"--tokenizer {name}: {error}") from None
    folder = target.parent
    folder.mkdir(exist_ok=True)
    for file in tokenizer_files(facts.path):
        shutil.copyfile(file, target if file == facts.path else folder / file.name)
    copy_templates(
        facts.path.parent, folder
    )  # of no concern to the tokens, but an export of the model brings them along
    if eos_token:
        config = folder / "tokenizer_config.json"
        content = json.loads(config.read_text()) if config.is_file() else {}
        config.write_text(json.dumps(content | {"eos_token": eos_token}, indent=2) + "\n")
    if read_tokenizer(target).eos_token_id is None:
        raise DataError(f"--eos-token {eos_token}: not in the vocabulary of {facts.path}. Pass one that is.")
