"""Everything that can be wrong with a run's token files and tokenizer, found in seconds and told all at once."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from harness.config.schema import DataConfig
from harness.data.errors import DataError
from harness.data.held_out import in_both, too_few
from harness.data.token_files import DTYPES, HEADER_THREADS, TokenFile, TokenSource, index_path, inspect_source
from harness.data.tokenizer_files import TokenizerFacts, locate_tokenizer, read_tokenizer
from harness.data.windows import packing_of, window_problems

SAMPLED_BLOCKS = 8
"""Blocks of tokens looked at per source, spread over its files."""
BLOCK_BYTES = 1 << 16
SAMPLED_DOCUMENTS = 16
"""Document ends looked at per source to see whether the end-of-document token stands there."""


def check_sources(data: DataConfig, vocab_size: int, eval_sequences: int = 0) -> list[str]:
    """Every problem with `data.sources` and `data.validation`, one sentence each; empty: the run can read them.

    Reads headers and a few blocks of each source, in the object store where it lies in one: token ids that do not fit
    `vocab_size`, an end-of-document token that never stands at the end of a document, a tokenizer larger than the model's
    vocabulary, sources tokenised differently, held-out files that are trained on or hold less than `eval_sequences`.
    """
    listing = [("sources", *item) for item in data.sources.items()]
    listing += [("validation", *item) for item in data.validation.items()]
    with ThreadPoolExecutor(max(1, min(HEADER_THREADS, len(listing)))) as pool:
        inspected = list(pool.map(lambda item: inspect_source(item[1], item[2].path, item[0]), listing))
        problems = [problem for _, found in inspected for problem in found]
        sound = [source for source, found in inspected if source and not found]
        problems += [
            problem for source in sound for problem in window_problems(source, data.seq_len, packing_of(data, source))
        ]
        problems += _tokenizer_problems(data, sound, vocab_size)
        try:
            eos = resolve_eos(data, sound) if sound else None
        except DataError as error:
            eos, problems = None, [*problems, str(error)]
        for found in pool.map(lambda source: _content_problems(source, vocab_size, eos), sound):
            problems += found
    problems += _held_out_problems(data, sound, eval_sequences)
    return list(dict.fromkeys(problems))


def find_tokenizer(data: DataConfig, source: TokenSource | None = None) -> Path | None:
    """The tokenizer.json of `data.tokenizer` or, where that is null, the one that `source` names; None: not on this machine."""
    if data.tokenizer is not None:
        return locate_tokenizer(data.tokenizer)
    return _named_tokenizer(source) if source else None


def _named_tokenizer(source: TokenSource) -> Path | None:
    """The tokenizer.json that the files of `source` name, if it is on this machine or beside them in an object store."""
    if source.tokenizer is None:
        return None
    near = source.path
    if source.store is not None:
        from harness.data.stored_tokenizer import fetch

        near = fetch(source.store, source.tokenizer, source.key) or near
    return locate_tokenizer(source.tokenizer, near)


def resolve_eos(data: DataConfig, sources: Iterable[TokenSource]) -> int | None:
    """Id of the token that ends a document: `data.eos_token_id`, else the tokenizer's.

    None where it is not known and not needed. Raises DataError where `data.document_mask` needs it and nothing names it.
    """
    if data.eos_token_id is not None:
        return data.eos_token_id
    for source in sources:
        path = find_tokenizer(data, source)
        if path is not None and (eos := read_tokenizer(path).eos_token_id) is not None:
            return eos
    if data.document_mask:
        raise DataError(
            "data.eos_token_id=null: data.document_mask=true needs the token that ends a document, and no tokenizer on "
            "this machine names it. Set data.eos_token_id, or data.tokenizer, or data.document_mask=false."
        )
    return None


def _tokenizer_problems(data: DataConfig, sources: list[TokenSource], vocab_size: int) -> list[str]:
    if data.tokenizer is not None and locate_tokenizer(data.tokenizer) is None:
        return [
            f"data.tokenizer={data.tokenizer}: no tokenizer.json there, nor in the hub cache of this machine. "
            "Give its folder or file, or null."
        ]
    problems: list[str] = []
    facts: dict[str, TokenizerFacts] = {}
    for source in sources:  # what the files name, even where data.tokenizer is set: the two must agree
        try:
            for path in filter(None, (find_tokenizer(data), _named_tokenizer(source))):
                facts[str(path)] = read_tokenizer(path)
        except DataError as error:
            problems.append(str(error))
    for fact in facts.values():
        if fact.size > vocab_size:
            problems.append(
                f"model.vocab_size={vocab_size}: the tokenizer {fact.path} has {fact.size} tokens. "
                f"Set model.vocab_size={fact.size} or more."
            )
    kinds = {fact.identity: str(fact.path) for fact in facts.values()}
    if len(kinds) > 1:
        groups = dict.fromkeys(f"data.{source.group}" for source in sources)
        problems.append(
            f"{' and '.join(groups)} were tokenised with different tokenizers ({', '.join(kinds.values())}): the same id "
            "would mean different text. Prepare all of them with one (--tokenizer)."
        )
    else:
        problems += _added_problems(list(facts.values()))
    return problems


def _added_problems(facts: list[TokenizerFacts]) -> list[str]:
    """Ids that tokenizers of one vocabulary have added for different tokens."""
    owners: dict[int, tuple[str, TokenizerFacts]] = {}
    for fact in facts:
        for number, text in fact.added:
            other, owner = owners.setdefault(number, (text, fact))
            if other != text:
                return [
                    f"data.sources and data.validation were tokenised with different added tokens: {number} is {other!r} in "
                    f"{owner.path} and {text!r} in {fact.path}. Prepare all of them with one tokenizer (--tokenizer)."
                ]
    return []


def _held_out_problems(data: DataConfig, sound: list[TokenSource], eval_sequences: int) -> list[str]:
    """Held-out files that are trained on, under whatever name or link, and too few of them."""
    held_out = [source for source in sound if source.group == "validation"]
    if not held_out:
        return []
    with ThreadPoolExecutor(HEADER_THREADS) as pool:

        def inodes(source: TokenSource) -> list[tuple[int, int]]:
            if source.store is not None:
                return []  # what is held out is on a mounted file system
            stats = pool.map(lambda file: file.path.stat(), source.files)
            return [(stat.st_dev, stat.st_ino) for stat in stats]

        try:
            owners = {inode: source.name for source in sound if source.group == "sources" for inode in inodes(source)}
            shared = [
                (source.name, owners[inode]) for source in held_out for inode in inodes(source) if inode in owners
            ]
        except OSError as error:
            return [f"data.validation: {error.filename} cannot be read: {error.strerror}"]
    problems = [in_both(one, data.validation[one].path, other, data.sources[other].path) for one, other in shared]
    if len(held_out) == len(data.validation) and (problem := too_few(held_out, data.seq_len, eval_sequences)):
        problems.append(problem)
    return problems


def _content_problems(source: TokenSource, vocab_size: int, eos: int | None) -> list[str]:
    """Looks into a few blocks and at a few document ends of one source."""
    key = source.key
    spread = np.linspace(0, len(source.files) - 1, SAMPLED_BLOCKS).round().astype(int)
    try:
        for turn, number in enumerate(spread):
            file = source.files[number]
            found = _highest_token(source, file, turn / (SAMPLED_BLOCKS - 1))
            if found >= vocab_size:
                return [
                    f"{key}: {file.path.name} holds token {found}, but model.vocab_size={vocab_size}. Use the tokenizer's "
                    "vocabulary size, or files made with the model's tokenizer."
                ]
        last = _tokens_at_document_ends(source) if eos is not None else []
    except OSError as error:
        return [f"{key} cannot be read: {error.strerror or error}"]
    if last and eos not in last:
        return [
            f"data.eos_token_id={eos}: no document looked at in {key} ends with it (they end with "
            f"{', '.join(map(str, sorted(set(last))[:5]))}). Set the id that ends documents there, or tokenise again "
            "with an end-of-document token."
        ]
    return []


def _highest_token(source: TokenSource, file: TokenFile, where: float) -> int:
    """Highest id in one block; `where` goes from 0, the file's start, to 1, its end."""
    size = source.token_size
    block = BLOCK_BYTES // size
    data = source.folder.read(file.path.name, int(max(0, file.tokens - block) * where) * size, BLOCK_BYTES)
    return int(np.frombuffer(data[: len(data) // size * size], DTYPES[size]).max(initial=0))


def _tokens_at_document_ends(source: TokenSource) -> list[int]:
    """Last tokens of the first documents of the first file that has an index."""
    folder, width = source.folder, source.token_size
    for file in source.files:
        index = index_path(file.path).name
        if folder.size(index) is None:
            continue
        ends = np.frombuffer(folder.read(index, 0, 8 * SAMPLED_DOCUMENTS), "<u8")
        read = [folder.read(file.path.name, (int(end) - 1) * width, width) for end in ends if end]
        return [int.from_bytes(token, "little") for token in read]
    return []
