"""`python -m harness.data tokenizer`: train one, and compare it with others, language by language.

Fertility is tokens per word; the share of continued words is that of words cut into two tokens or more. Both the lower the
better. A word is what stands between white space; for languages written without it, the figures compare tokenizers with one
another and say nothing by themselves.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.data.documents.passed_over import counts, sentence
from harness.data.errors import DataError
from harness.data.preparation.inputs import FORMATS, Inputs, find_inputs
from harness.data.preparation.train_tokenizer import MIN_VOCAB_SIZE, PRE_TOKENIZERS, train_tokenizer
from harness.data.tokenizer_files import locate_tokenizer, read_tokenizer
from harness.run.files import write_json

MAX_CHARS = 64_000_000
"""Text of each language that is trained on, at most, so that a large one does not drown the others."""
HELD_OUT_EVERY = 10
"""Every tenth document is kept from the training and measured on."""
MEASURED_CHARS = 2_000_000
"""Text of each language that is measured on, at most."""


@dataclass
class Measure:
    """One tokenizer on one language."""

    tokenizer: str
    language: str
    vocab_size: int
    words: int = 0
    tokens: int = 0
    continued_words: int = 0
    bytes: int = 0

    @property
    def fertility(self) -> float:
        """Tokens per word."""
        return self.tokens / self.words

    @property
    def continued(self) -> float:
        """Share of words of two tokens or more."""
        return self.continued_words / self.words

    def as_dict(self) -> dict[str, Any]:
        """With the derived figures."""
        derived = {
            "fertility": round(self.fertility, 4),
            "continued_word_share": round(self.continued, 4),
            "bytes_per_token": round(self.bytes / self.tokens, 4),
        }
        return asdict(self) | derived


def add_tokenizer(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `tokenizer`."""
    about = (
        "Train a byte-level BPE tokenizer, and compare it with others by fertility and continued words per language."
    )
    parser = commands.add_parser("tokenizer", help="train a tokenizer and compare it with others", description=about)
    add = parser.add_argument
    add(
        "--input",
        required=True,
        action="append",
        metavar="LANGUAGE=PATH",
        help="file or folder of a language; repeatable",
    )
    add("--format", choices=FORMATS, help="default: by file names")
    add("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    add("--output", type=Path, help="folder to make; without it nothing is trained, and --against are compared")
    add("--vocab-size", type=int, default=32_768, metavar="N", help="default: 32768")
    add(
        "--pre-tokenizer",
        choices=sorted(PRE_TOKENIZERS),
        default="llama3",
        help="how numbers and words are cut (default: llama3)",
    )
    add("--against", action="append", default=[], metavar="PATH", help="tokenizer to compare with; repeatable")
    add("--json", type=Path, metavar="FILE", help="write the comparison there (default: OUTPUT/comparison.json)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    languages = _languages(options.input, options.format, options.text_key)
    measures = compare(
        languages,
        options.output,
        options.vocab_size,
        options.pre_tokenizer,
        options.against,
    )
    print(table(measures))
    if passed_over := [entry for inputs in languages.values() for entry in inputs.passed_over]:
        print(sentence(counts(passed_over)))
    target = options.json or (options.output / "comparison.json" if options.output else None)
    if target:
        try:
            write_json(target, [measure.as_dict() for measure in measures])
        except OSError as error:
            raise DataError(f"--json {target}: cannot write it: {error.strerror}") from None
    return 0


def compare(
    languages: dict[str, Inputs],
    output: Path | None,
    vocab_size: int,
    pre_tokenizer: str,
    against: list[str],
) -> list[Measure]:
    """Train at `output` (None: do not), and measure it and those in `against` on every language's held-out documents.

    Raises DataError for bad options or inputs. `output` is complete or absent, and never overwritten.
    """
    if output is None and not against:
        raise DataError("give --output to train a tokenizer, --against to compare others, or both")
    if vocab_size < MIN_VOCAB_SIZE:
        raise DataError(
            f"--vocab-size {vocab_size}: must be at least {MIN_VOCAB_SIZE}: every byte and the end of documents"
        )
    if output is not None and output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"--output {output}: exists. Choose another folder.")
    rivals = {name: _load(name) for name in against}
    tokenizers: dict[str, Any] = {}
    if output is not None:
        tokenizers[str(output)] = _train(languages, output, vocab_size, pre_tokenizer)
    tokenizers |= rivals
    return [
        _measure(name, tokenizer, language, _documents(found, held_out=True))
        for language, found in languages.items()
        for name, tokenizer in tokenizers.items()
    ]


def table(measures: list[Measure]) -> str:
    """For people: a line for each language and tokenizer."""
    width = max(len(measure.tokenizer) for measure in measures)
    lines = [
        f"{'language':10} {'tokenizer':{width}} {'vocabulary':>10} {'tokens/word':>11} {'continued':>9} {'bytes/token':>11}"
    ]
    for m in measures:
        lines.append(
            f"{m.language:10} {m.tokenizer:{width}} {m.vocab_size:>10,} {m.fertility:>11.3f} {m.continued:>9.1%} "
            f"{m.bytes / m.tokens:>11.2f}"
        )
    return "\n".join(lines)


def _languages(inputs: list[str], format: str | None, text_key: str) -> dict[str, Inputs]:
    found: dict[str, Inputs] = {}
    problems = []
    for text in inputs:
        language, equals, path = text.partition("=")
        if not equals or not language or not path or "/" in language:
            problems.append(f"--input {text}: must be LANGUAGE=PATH, such as en={path or text}")
        elif language in found:
            problems.append(f"--input {text}: {language} was given before; put its files into one folder")
        else:
            try:
                found[language] = find_inputs(path, format, text_key)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return found


def _documents(inputs: Inputs, held_out: bool) -> Iterator[str]:
    """The documents to measure on, or the others; all of them for both where there are too few to keep some back."""
    from harness.data.preparation.readers import read_documents

    number = 0
    for number, text in enumerate(read_documents(inputs), start=1):
        if (number % HELD_OUT_EVERY == 0) == held_out:
            yield text
    if held_out and 0 < number < HELD_OUT_EVERY:
        yield from read_documents(inputs)


def _train(languages: dict[str, Inputs], output: Path, vocab_size: int, pre_tokenizer: str) -> Any:
    from tqdm import tqdm

    def texts() -> Iterator[str]:
        for language, inputs in languages.items():
            taken = 0
            for text in _documents(inputs, held_out=False):
                yield text
                bar.update(len(text))
                taken += len(text)
                if taken >= MAX_CHARS:
                    break
            if not taken:
                raise DataError(f"--input {language}={inputs.path}: no text in it")

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as beside:
            folder = Path(beside) / "made"
            folder.mkdir()
            with tqdm(desc="training tokenizer", unit=" characters", unit_scale=True) as bar:
                train_tokenizer(texts(), folder / "tokenizer.json", vocab_size, pre_tokenizer)
            os.rename(folder, output)
    except OSError as error:
        raise DataError(f"--output {output}: cannot write it: {error.strerror}") from None
    made = read_tokenizer(output / "tokenizer.json")
    if made.size < vocab_size:
        print(
            f"{output}: {made.size:,} tokens of {vocab_size:,} asked for: the text holds no more pairs to merge",
            file=sys.stderr,
        )
    return _load(str(output))


def _load(name: str) -> Any:
    from harness.data.tokenizer.encoder import load_tokenizer

    path = locate_tokenizer(name)
    if path is None:
        raise DataError(f"--against {name}: no tokenizer.json there. Give its folder or the file.")
    try:
        return load_tokenizer(path)
    except DataError as error:
        raise DataError(f"--against {name}: {error}") from None


def _measure(name: str, tokenizer: Any, language: str, texts: Iterator[str]) -> Measure:
    """Words are cut one by one, each with the space before it, as they stand in text."""
    measure = Measure(name, language, tokenizer.get_vocab_size())
    seen: dict[str, int] = {}
    taken = 0
    for text in texts:
        words = text.split()
        fresh = list(dict.fromkeys(word for word in words if word not in seen))
        encoded = tokenizer.encode_batch([f" {word}" for word in fresh], add_special_tokens=False)
        seen |= {word: len(cut.ids) for word, cut in zip(fresh, encoded, strict=True)}
        for word in words:
            measure.words += 1
            measure.tokens += seen[word]
            measure.continued_words += seen[word] > 1
            measure.bytes += len(word.encode()) + 1
        taken += len(text)
        if taken >= MEASURED_CHARS:
            break
    if not measure.words:
        raise DataError(f"--input {language}=...: no words to measure on")
    return measure
