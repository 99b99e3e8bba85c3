"""Measures token files: what can be counted is counted, the rest is estimated on documents drawn at random."""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.documents.passed_over import sentence
from harness.data.errors import DataError
from harness.data.preparation.job import MANIFEST, PASSED_OVER
from harness.data.token_files import DTYPES, TokenFile, TokenSource
from harness.data.tokenizer_files import locate_tokenizer

COUNTED_DOCUMENTS = 20_000_000
"""Lengths of so many documents are counted; of more, those in files drawn at random."""
MAX_TOKENS = 20_000
"""Of a drawn document that are decoded, at most."""
N_GRAM = 6
"""Words in what is looked for as repeated."""
REPEATED = 8
"""Phrases shown for each source."""
SAME_STRETCH = 0.9
"""N-grams that overlap are one phrase where they are in nearly as many documents."""
SEED = 0


@dataclass
class Lengths:
    """Tokens per document."""

    histogram: list[int]
    """Documents of [2^i, 2^(i+1)) tokens."""
    mean: float
    median: float
    p99: float
    counted: int
    """Documents behind these figures."""


@dataclass
class SourceFacts:
    """One source."""

    name: str
    path: str
    files: int
    tokens: int
    bytes: int
    tokenizer: str | None
    documents: int | None = None
    """None: no index says where documents end."""
    lengths: Lengths | None = None
    sampled: int = 0
    """Documents drawn and decoded; what follows is measured on them."""
    languages: dict[str, float] = field(default_factory=dict)
    """Language -> share of the sampled characters; most first."""
    exact_duplicates: float | None = None
    """Share of sampled documents whose text an earlier one has."""
    near_duplicates: float | None = None
    """Share of sampled documents that share most word 5-grams with an earlier one, and are not exactly the same."""
    repeated: list[tuple[str, float]] = field(default_factory=list)
    """Phrase -> share of the sampled documents that hold it; in two or more."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    """What its preparation dropped, from its manifest."""
    notes: list[str] = field(default_factory=list)
    """What could not be measured, and why."""


def measure(source: TokenSource, sample: int, advance: Callable[[], Any] = lambda: None) -> SourceFacts:
    """Everything about one source. `sample`: documents to draw; `advance` is called for each one done.

    Raises DataError for files that cannot be read.
    """
    size = sum(file.tokens for file in source.files) * source.token_size
    facts = SourceFacts(source.name, str(source.path), len(source.files), source.tokens, size, source.tokenizer)
    manifest = _manifest(source.path)
    facts.steps = manifest["steps"] if len(manifest.get("steps", [])) > 1 else []
    if any(manifest.get("passed_over", {}).values()):
        facts.notes.append(f"its preparation {sentence(manifest['passed_over'])}: {source.path / PASSED_OVER}")
    indices = {file: index for file in source.files if (index := _index(file)) is not None}
    if len(indices) < len(source.files):
        facts.notes.append("no .index files, which say where documents end: lengths and text are not measured")
        return facts
    counts = np.array([len(index) for index in indices.values()], dtype=np.int64)
    facts.documents = int(counts.sum())
    facts.lengths = _lengths(list(indices.values()), counts)
    tokenizer = locate_tokenizer(source.tokenizer, source.path) if source.tokenizer else None
    if tokenizer is None:
        facts.notes.append(
            f"its tokenizer ({source.tokenizer or 'not named'}) is not on this machine: text is not measured"
        )
        return facts
    texts = _draw(source, indices, counts, sample, tokenizer)
    _measure_texts(facts, texts, advance)
    return facts


def _measure_texts(facts: SourceFacts, texts: list[str], advance: Callable[[], Any]) -> None:
    from harness.data.preparation.language import guess_language

    facts.sampled = len(texts)
    if not texts:
        return
    try:
        languages: Counter[str] = Counter()
        for text in texts:
            languages[guess_language(text)[0]] += len(text)
        total = sum(languages.values()) or 1
        facts.languages = {language: size / total for language, size in languages.most_common()}
    except ImportError:
        facts.notes.append("languages need py3langid: pip install -e '.[data]'")
    unique = list(dict.fromkeys(texts))
    facts.exact_duplicates = 1 - len(unique) / len(texts)
    try:
        facts.near_duplicates = near_duplicates(unique, advance) / len(texts)
    except ImportError as error:
        facts.notes.append(f"near duplicates need a library: {error} All: pip install -e '.[data]'")
    facts.repeated = [(phrase, count / len(texts)) for phrase, count in repeated_phrases(texts)]


def near_duplicates(texts: list[str], advance: Callable[[], Any] = lambda: None) -> int:
    """How many of these a near deduplication with a recipe's defaults would drop."""
    from datatrove.pipeline.dedup import MinhashDedupSignature

    from harness.data.preparation.recipe import MinhashRule
    from harness.data.preparation.stages import minhash_config

    signer = MinhashDedupSignature("unused", minhash_config(MinhashRule()))
    parents = list(range(len(texts)))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = at = parents[parents[at]]
        return at

    first: dict[tuple[int, ...], int] = {}
    for number, text in enumerate(texts):
        shingles = signer.get_shingles(text)
        for bucket, hashes in enumerate(signer.get_signature(shingles) if shingles.size else []):
            other = first.setdefault((bucket, *hashes), number)
            parents[root(number)] = root(other)
        advance()
    return len(texts) - sum(parent == at for at, parent in enumerate(parents))


def repeated_phrases(texts: list[str]) -> list[tuple[str, int]]:
    """Phrases of `N_GRAM` words or more that most documents hold, with the number that do; at least 2."""
    split = [text.lower().split() for text in texts]
    hashes: list[np.ndarray | list[int]] = [
        np.unique([hash(gram) for gram in _grams(words)]) if len(words) >= N_GRAM else [] for words in split
    ]
    values, counts = np.unique(
        np.concatenate([np.asarray(found, dtype=np.int64) for found in hashes]), return_counts=True
    )
    order = np.argsort(-counts, kind="stable")[: 100 * REPEATED]
    wanted = {int(values[at]): int(counts[at]) for at in order if counts[at] > 1}
    grams: dict[tuple[str, ...], int] = {}
    for words in split:
        for gram in _grams(words):
            if (count := wanted.pop(hash(gram), None)) is not None:
                grams[gram] = count
        if not wanted:
            break
    return _join_overlapping(grams)


def _grams(words: list[str]) -> Iterable[tuple[str, ...]]:
    return zip(*(words[at:] for at in range(N_GRAM)), strict=False)


def _join_overlapping(grams: dict[tuple[str, ...], int]) -> list[tuple[str, int]]:
    """One phrase for n-grams that are the same stretch of text, moved by a word."""
    left = dict(sorted(grams.items(), key=lambda item: (-item[1], item[0])))
    phrases: list[tuple[str, int]] = []
    while left and len(phrases) < REPEATED:
        gram = next(iter(left))
        count = left.pop(gram)
        phrase = list(gram)
        growing = True
        while growing and len(phrase) < 10 * N_GRAM:
            growing = False
            for other in [other for other, documents in left.items() if documents >= SAME_STRETCH * count]:
                if other[:-1] == tuple(phrase[1 - N_GRAM :]):
                    phrase.append(other[-1])
                elif other[1:] == tuple(phrase[: N_GRAM - 1]):
                    phrase.insert(0, other[0])
                else:
                    continue
                del left[other]
                growing = True
        phrases.append((" ".join(phrase), count))
    return phrases


def _index(file: TokenFile) -> np.ndarray | None:
    """Ends of the documents of a file, in tokens: uint64 [documents]; None: it has none."""
    path = file.path.with_name(f"{file.path.name}.index")
    if not path.exists():
        return None
    try:
        return np.memmap(path, "<u8", "r") if path.stat().st_size else np.empty(0, "<u8")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None


def _lengths(indices: list[np.ndarray], counts: np.ndarray) -> Lengths:
    order = np.arange(len(indices))
    if counts.sum() > COUNTED_DOCUMENTS:
        order = np.random.default_rng(SEED).permutation(len(indices))
        order = order[: max(1, int(np.searchsorted(np.cumsum(counts[order]), COUNTED_DOCUMENTS)))]
    lengths = np.concatenate([np.diff(indices[at].astype(np.int64), prepend=0) for at in order])
    if not len(lengths):
        return Lengths([], 0, 0, 0, 0)
    bins = np.bincount(np.log2(np.maximum(lengths, 1)).astype(np.int64))
    median, p99 = np.percentile(lengths, [50, 99])
    return Lengths(bins.tolist(), float(lengths.mean()), float(median), float(p99), len(lengths))


def _draw(
    source: TokenSource, indices: dict[TokenFile, np.ndarray], counts: np.ndarray, sample: int, tokenizer: Path
) -> list[str]:
    """Texts of `sample` documents, all alike likely; of all of them where there are no more."""
    from tokenizers import Tokenizer

    total = int(counts.sum())
    drawn = np.sort(np.random.default_rng(SEED).choice(total, min(sample, total), replace=False))
    starts = np.cumsum(counts) - counts
    decoder, files = Tokenizer.from_file(str(tokenizer)), list(indices)
    texts = []
    for number, position in zip(drawn, np.searchsorted(starts + counts, drawn, side="right"), strict=True):
        file, document = files[position], int(number - starts[position])
        index = indices[file]
        begin = int(index[document - 1]) if document else 0
        tokens = min(int(index[document]) - begin, MAX_TOKENS)
        read = np.fromfile(file.path, DTYPES[source.token_size], tokens, offset=begin * source.token_size)
        texts.append(decoder.decode(read.tolist(), skip_special_tokens=True))
    return texts


def _manifest(folder: Path) -> dict[str, Any]:
    """That of a preparation; empty where there is none."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
