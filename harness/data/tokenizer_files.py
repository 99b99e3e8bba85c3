"""What the data needs to know of a tokenizer, read from its JSON files: size, end-of-document token, identity.

Reads files only: no tokenizers library (launch must stay quick) and never the network.
"""

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.data.errors import DataError

USUAL_EOS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "<|im_end|>")
"""Names to look for where no file beside tokenizer.json names the end-of-document token."""

TEMPLATE = "chat_template.jinja"
TEMPLATES = "additional_chat_templates"
"""A tokenizer's chat template, and the folder of its others; older ones stand in tokenizer_config.json or chat_template.json."""


@dataclass(frozen=True)
class TokenizerFacts:
    """One tokenizer.json."""

    path: Path
    size: int
    """Highest token id + 1, added tokens included: what an embedding must hold."""
    eos_token: str | None
    eos_token_id: int | None
    identity: str
    """Digest of vocabulary and merges: equal for tokenizers that cut text alike."""
    added: tuple[tuple[int, str], ...] = ()
    """Tokens beside the vocabulary: id and text, by id."""


def locate_tokenizer(name: str, near: Path | None = None) -> Path | None:
    """The tokenizer.json that `name` means: a file, a folder, a path relative to `near`, or a cached hub repository."""
    roots = [Path(name).expanduser()] + ([near / name] if near else [])
    for root in roots:
        for candidate in (root, root / "tokenizer.json"):
            if candidate.is_file():
                return candidate
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, "tokenizer.json")
        return Path(cached) if isinstance(cached, str) else None
    return None


def read_tokenizer(path: Path) -> TokenizerFacts:
    """Read a tokenizer.json. Raises DataError when it is none."""
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    return _read(path, stat.st_mtime_ns, stat.st_ino)


@lru_cache(maxsize=32)
def _read(path: Path, modified_ns: int, inode: int) -> TokenizerFacts:
    """Cached for as long as the file stays what it is: large ones take a tenth of a second, and many sources share one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model = content["model"]
        vocab = model["vocab"]
        # Unigram models store a list of [piece, score], all others piece -> id.
        ids = vocab if isinstance(vocab, dict) else {piece: number for number, (piece, _) in enumerate(vocab)}
        added = tuple(sorted((token["id"], token["content"]) for token in content.get("added_tokens") or []))
        ids = ids | {text: number for number, text in added}
        size = max(ids.values()) + 1
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a tokenizer.json of the tokenizers library: {error!r}") from None
    eos = _named_eos(path.parent) or next((name for name in USUAL_EOS if name in ids), None)
    identity = hashlib.blake2b(json.dumps([vocab, model.get("merges")], sort_keys=True).encode(), digest_size=16)
    return TokenizerFacts(path, size, eos, ids.get(eos) if eos else None, identity.hexdigest(), added)


def text_of_ids(path: Path) -> dict[int, str]:
    """Id -> what the vocabulary of a tokenizer.json has for it, added tokens left out. Raises DataError when it is none."""
    read_tokenizer(path)
    vocab = json.loads(path.read_text(encoding="utf-8"))["model"]["vocab"]
    if isinstance(vocab, dict):
        return {number: text for text, number in vocab.items()}
    return {number: text for number, (text, _) in enumerate(vocab)}


def copy_templates(source: Path, target: Path) -> None:
    """Copy the chat templates beside a tokenizer, if it has any, into the folder `target`. Raises OSError."""
    for name in (TEMPLATE, "chat_template.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
    others = sorted((source / TEMPLATES).glob("*.jinja"))
    if others:
        (target / TEMPLATES).mkdir(exist_ok=True)
    for other in others:
        shutil.copyfile(other, target / TEMPLATES / other.name)


def _named_eos(folder: Path) -> str | None:
    """The end-of-document token that the files beside tokenizer.json name.

    Raises DataError for one that is damaged: another token would be guessed in its place.
    """
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        try:
            token = json.loads((folder / name).read_text(encoding="utf-8")).get("eos_token")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataError(f"{folder / name}: cannot be read: {error.strerror}") from None
        except (ValueError, AttributeError):
            raise DataError(f"{folder / name}: damaged, not an object of JSON. Copy it again, or remove it.") from None
        if isinstance(token, dict):  # transformers writes an added token as an object
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None
