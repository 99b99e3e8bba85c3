"""`python -m harness.data report`: a page about token files, or about the sources of a run."""

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.errors import DataError

if TYPE_CHECKING:
    from harness.data.token_files import TokenSource

SAMPLE = 2000


def add_report(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `report`."""
    about = (
        "Show tokens, documents, lengths, languages, duplicates and repeated phrases of token files as one HTML page."
    )
    parser = commands.add_parser("report", help="a page about token files", description=about)
    add = parser.add_argument
    add(
        "sources",
        nargs="+",
        metavar="PATH|NAME=PATH|+exp=NAME",
        help="folders of token files; or a run's overrides: its sources",
    )
    add(
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the page to write (.html); its figures go to a .json beside it",
    )
    add("--sample", type=int, default=SAMPLE, metavar="N", help=f"documents drawn from each source (default: {SAMPLE})")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from tqdm import tqdm

    from harness.data.report.measure import measure
    from harness.data.report.page import render
    from harness.run.files import write_atomic, write_json

    if options.sample < 1:
        raise DataError(f"--sample {options.sample}: must be at least 1")
    if options.output.suffix not in (".html", ".htm"):
        raise DataError(f"--output {options.output}: must end in .html")
    sources = _sources(options.sources)
    facts = []
    with tqdm(total=len(sources) * options.sample, desc="measuring", unit=" documents") as bar:
        for number, source in enumerate(sources, start=1):
            bar.set_postfix_str(source.name)
            facts.append(measure(source, options.sample, bar.update))
            bar.update(number * options.sample - bar.n)
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(options.output, render(facts))
        write_json(options.output.with_suffix(".json"), [asdict(source) for source in facts])
    except OSError as error:
        raise DataError(f"--output {options.output}: cannot write it: {error.strerror}") from None
    print(f"{options.output}: {len(facts)} source(s), {sum(source.tokens for source in facts):,} tokens")
    return 0


def _sources(words: list[str]) -> "list[TokenSource]":
    """What the words name. Raises DataError that lists everything wrong with them."""
    from harness.data.token_files import open_source

    if any(word.startswith("+") for word in words):
        named = _of_config(words)
    else:
        named = {}
        for word in words:
            name, equals, path = word.rpartition("=")
            name = name if equals else Path(path).resolve().name
            if name in named:
                raise DataError(f"{word}: {name} is named twice. Tell them apart with NAME=PATH.")
            named[name] = path
    sources, problems = [], []
    for name, path in named.items():
        try:
            sources.append(open_source(name, path))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return sources


def _of_config(overrides: list[str]) -> dict[str, str]:
    from harness.config.errors import ConfigError
    from harness.model.composed import composed_run

    try:
        config = composed_run(overrides)
    except ConfigError as error:
        raise DataError("\n".join(error.problems)) from None
    return {name: source.path for name, source in config.data.sources.items()}
