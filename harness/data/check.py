"""Everything that can be wrong with a run's token files and tokenizer, found in seconds and told all at once."""

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from harness.config.schema import DataConfig
from harness.data.errors import DataError
from harness.data.held_out import in_both, too_few
from harness.data.origins import is_url, list_folder, split
from harness.data.token_files import DTYPES, HEADER_THREADS, TokenFile, TokenSource, inspect_source, source_key
from harness.data.tokenizer_files import TokenizerFacts, locate_tokenizer, read_tokenizer
from harness.data.windows import packing_of, window_problems

SAMPLED_BLOCKS = 8
"""Blocks of tokens looked at per source, spread over its files."""
BLOCK_BYTES = 1 << 16
SAMPLED_DOCUMENTS = 16
"""Document ends looked at per source to see whether the end-of-document token stands there."""


def check_sources(data: DataConfig, vocab_size: int, eval_sequences: int = 0) -> list[str]:
    """Every problem with `data.sources` and `data.validation`, one sentence each; empty: the run can read them.

    Sources in an object store are listed: their files are looked at where they are staged. Of the others,
    reads headers and a few blocks of each source: token ids that do not fit `vocab_size`, an end-of-document token that
    never stands at the end of a document, a tokenizer larger than the model's vocabulary, sources tokenised differently,
    held-out files that are trained on or hold less than `eval_sequences`.
    """
    listing = [("sources", *item) for item in data.sources.items()]
    listing += [("validation", *item) for item in data.validation.items()]
    stored = [item for item in listing if is_url(item[2].path)]
    listing = [item for item in listing if not is_url(item[2].path)]
    with ThreadPoolExecutor(max(1, min(HEADER_THREADS, len(listing)))) as pool:
        inspected = list(pool.map(lambda item: inspect_source(item[1], item[2].path, item[0]), listing))
        problems = [problem for _, found in inspected for problem in found]
        problems += filter(None, pool.map(lambda item: _object_store_problem(item[1], item[2].path, item[0]), stored))
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


def _object_store_problem(name: str, url: str, group: str) -> str | None:
    key = source_key(name, url, group)
    folder, only = split(url)
    try:
        there = list_folder(folder, key)
    except DataError as error:
        return str(error)
    if any(file.endswith(".ds") and only in (None, file) for file in there):
        return None
    return f"{key} holds no .ds files. Give a folder that python -m harness.data prepare made."


def find_tokenizer(data: DataConfig, source: TokenSource | None = None) -> Path | None:
    """The tokenizer.json of `data.tokenizer` or, where that is null, the one that `source` names; None: not on this machine."""
    if data.tokenizer is not None:
        return locate_tokenizer(data.tokenizer)
    return locate_tokenizer(source.tokenizer, near=source.path) if source and source.tokenizer else None


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
        named = locate_tokenizer(source.tokenizer, near=source.path) if source.tokenizer else None
        for path in filter(None, (find_tokenizer(data), named)):
            try:
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
    return problems


def _held_out_problems(data: DataConfig, sound: list[TokenSource], eval_sequences: int) -> list[str]:
    """Held-out files that are trained on, under whatever name or link, and too few of them."""
    held_out = [source for source in sound if source.group == "validation"]
    if not held_out:
        return []
    with ThreadPoolExecutor(HEADER_THREADS) as pool:

        def inodes(source: TokenSource) -> list[tuple[int, int]]:
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
            found = _highest_token(file, source.token_size, turn / (SAMPLED_BLOCKS - 1))
            if found >= vocab_size:
                return [
                    f"{key}: {file.path.name} holds token {found}, but model.vocab_size={vocab_size}. Use the tokenizer's "
                    "vocabulary size, or files made with the model's tokenizer."
                ]
        last = _tokens_at_document_ends(source) if eos is not None else []
    except OSError as error:
        return [f"{key} cannot be read: {error.strerror}"]
    if last and eos not in last:
        return [
            f"data.eos_token_id={eos}: no document looked at in {key} ends with it (they end with "
            f"{', '.join(map(str, sorted(set(last))[:5]))}). Set the id that ends documents there, or tokenise again "
            "with an end-of-document token."
        ]
    return []


def _highest_token(file: TokenFile, token_size: int, where: float) -> int:
    """Highest id in one block; `where` goes from 0, the file's start, to 1, its end."""
    block = BLOCK_BYTES // token_size
    offset = int(max(0, file.tokens - block) * where) * token_size
    with file.path.open("rb") as handle:
        data = os.pread(handle.fileno(), BLOCK_BYTES, offset)
    return int(np.frombuffer(data[: len(data) // token_size * token_size], DTYPES[token_size]).max(initial=0))


def _tokens_at_document_ends(source: TokenSource) -> list[int]:
    """Last tokens of the first documents of the first file that has an index."""
    for file in source.files:
        index = file.path.with_name(file.path.name + ".index")
        if index.exists():
            with index.open("rb") as handle:
                ends = np.frombuffer(handle.read(8 * SAMPLED_DOCUMENTS), "<u8")
            with file.path.open("rb") as handle:
                offsets = [(int(end) - 1) * source.token_size for end in ends if end]
                read = [os.pread(handle.fileno(), source.token_size, offset) for offset in offsets]
            return [int.from_bytes(token, "little") for token in read]
    return []
