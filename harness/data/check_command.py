"""`python -m harness.data check`: everything about a run's data that can be known before it trains."""

import argparse
import json
import socket
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness.config.arguments import add_overrides
from harness.data.errors import DataError

if TYPE_CHECKING:
    from harness.config.schema import RootConfig
    from harness.data.full_check import Expectation
    from harness.data.residency import FileResidency
    from harness.data.token_files import TokenSource

Item = TypeVar("Item")
OK, PROBLEMS = 0, 1
RESIDENT = 0.999
"""A source with less of it local is told about: blocks are rounded, so never exactly 1."""


def add_check(commands: Any) -> None:
    """Add `check` to the commands of `python -m harness.data`."""
    parser = commands.add_parser(
        "check",
        help="look at a run's data",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look at the token files of a run on this machine: sizes, index and metadata, tokenizer and vocabulary, what\n"
        "the file system has moved to a slower tier, whether every sequence is reached.",
        epilog="""  python -m harness.data check +exp=smol3b
  srun -N 48 --ntasks-per-node=1 python -m harness.data check +exp=smol3b    can every node read it?
  python -m harness.data check +exp=smol3b --full      every byte: checksums, tokens, ends of documents; goes on where an
                                                       interrupted one has stopped
  python -m harness.data check +exp=smol3b --warm      bring back what was moved to a slower tier

Exit code: 0 nothing is wrong, 1 something is, 2 bad config.""",
    )
    add_overrides(parser)
    parser.add_argument(
        "--full", action="store_true", help="read every file: checksums, token range, ends of documents"
    )
    parser.add_argument("--warm", action="store_true", help="bring back files that the file system has released")
    parser.add_argument("--threads", type=int, default=8, metavar="N", help="files read at once (default: 8)")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.set_defaults(run=run)


@dataclass
class SourceReport:
    """One source, in numbers. Sizes in bytes."""

    name: str
    group: str
    files: int
    tokens: int
    size: int
    disk: int | None
    """Allocated on disk; None, as what follows: it lies in an object store."""
    resident_ratio: float | None
    cold_files: int | None
    """Files that are not all local."""
    windows: int = 0
    wasted: float = 0.0
    """Share of the tokens that `data.packing` leaves over, or of the windows' places that it pads."""
    reached: str = ""
    """`every window`, or how many were looked at; empty: not in the order."""


@dataclass
class Report:
    """All that a check has found."""

    host: str
    sources: list[SourceReport] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def run(options: argparse.Namespace) -> int:
    """Check and print; the exit code. Raises DataError for a config that can't be used."""
    from harness.data.composed import composed

    if options.threads < 1:
        raise DataError(f"--threads {options.threads}: at least 1")
    config = composed(options.overrides, options.config_dir)
    report = check(config, full=options.full, warm=options.warm, threads=options.threads)
    print(json.dumps(asdict(report), indent=2) if options.json else as_text(report), flush=True)
    return PROBLEMS if report.problems else OK


def check(config: "RootConfig", *, full: bool = False, warm: bool = False, threads: int = 8) -> Report:
    """Look at everything; what is wrong with one source keeps nobody from looking at the others."""
    from harness.data.check import check_sources
    from harness.data.origins import is_url
    from harness.data.token_files import inspect_source

    data, train = config.data, config.train
    report = Report(socket.gethostname())
    listing = [("sources", *item) for item in data.sources.items()]
    listing += [("validation", *item) for item in data.validation.items()]
    report.warnings += [
        f"data.{group}.{name}.path={source.path}: in an object store, where headers and a few blocks were looked at; python -m "
        "harness.data stage checks all that it copies"
        for group, name, source in listing
        if is_url(source.path)
    ]
    report.problems += check_sources(data, config.model.vocab_size, train.eval_sequences if train.eval_every else 0)
    opened = [inspect_source(name, source.path, group)[0] for group, name, source in listing]
    readable = [source for source in opened if source is not None]
    sources = [source for source in readable if source.store is None]
    files = {source.key: _residency(source, report) for source in sources}
    if warm:
        _warm([file for found in files.values() for file in found], threads, report)
        files = {source.key: _residency(source, report) for source in sources}
    report.sources = [_source_report(source, files.get(source.key)) for source in readable]
    report.warnings += [
        _cold(found, found.resident_ratio)
        for found in report.sources
        if found.resident_ratio is not None and found.resident_ratio < RESIDENT
    ]
    paths = {found.key: source.path for found, (_, _, source) in zip(opened, listing, strict=True) if found is not None}
    report.warnings += [warning for source in sources if (warning := _deeper(source, paths[source.key]))]
    report.warnings += [warning for source in sources if (warning := _cut(config, source))]
    _check_coverage(config, report)
    if full:
        _check_content(config, sources, threads, report)
    report.problems = list(dict.fromkeys(report.problems))
    return report


def as_text(report: Report) -> str:
    """A table, then what to know and what is wrong."""
    from harness.text import bytes_text, count_text

    rows = [("source", "files", "tokens", "size", "on disk", "local", "sequences", "wasted", "reached")]
    for s in report.sources:
        name = s.name if s.group == "sources" else f"{s.name} ({s.group})"
        rows.append((
            name, f"{s.files:,}", count_text(s.tokens), bytes_text(s.size), "-" if s.disk is None else bytes_text(s.disk),
            "-" if s.resident_ratio is None else f"{s.resident_ratio:.1%}", f"{s.windows:,}" if s.windows else "-",
            f"{s.wasted:.2%}" if s.windows else "-", s.reached or "-",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" if n in (0, len(row) - 1) else f"{cell:>{w}}" for n, (cell, w) in enumerate(zip(row, widths, strict=True))).rstrip()
        for row in rows
    ]  # fmt: skip
    lines += [f"  - {warning}" for warning in report.warnings]
    count = len(report.problems)
    lines.append(f"{report.host}: {count} problem{'s' * (count != 1)}" if count else f"{report.host}: nothing is wrong")
    return "\n".join([*lines, *(f"  - {problem}" for problem in report.problems)])


def _residency(source: "TokenSource", report: Report) -> "list[FileResidency]":
    from harness.data.residency import residency

    try:
        return residency([file.path for file in source.files])
    except OSError as error:
        report.problems.append(f"{source.key}: {error.filename} cannot be read: {error.strerror}")
        return []


def _source_report(source: "TokenSource", files: "list[FileResidency] | None") -> SourceReport:
    from harness.data.residency import total

    size, resident = (source.tokens * source.token_size, None) if files is None else total(files)
    ratio = None if resident is None else resident / size if size else 1.0
    return SourceReport(
        name=source.name,
        group=source.group,
        files=len(source.files),
        tokens=source.tokens,
        size=size,
        disk=None if files is None else sum(file.disk for file in files),
        resident_ratio=ratio,
        cold_files=None if files is None else sum(file.resident < RESIDENT * file.size for file in files),
    )


def _cold(found: SourceReport, ratio: float) -> str:
    return (
        f"data.{found.group}.{found.name}: {ratio:.1%} is local, {found.cold_files:,} of {found.files:,} files are "
        "not, or not all: first reads of them are slow. --warm brings them back; data.stage_to copies them to the nodes"
    )


def _deeper(source: "TokenSource", path: str) -> str | None:
    """Token files in folders below that of a source: a run reads those of the folder itself alone."""
    from harness.data.documents.walk import walk

    if not Path(path).expanduser().is_dir():  # one token file, whose folder may hold what it will
        return None
    try:
        deeper = [file.name for file in walk(str(source.path)).files if "/" in file.name and file.name.endswith(".ds")]
    except DataError as error:
        return f"{source.key}: {str(error).removeprefix('--input ')}"
    if not deeper:
        return None
    return f"{source.key}: {len(deeper)} token file(s) in folders below are not read ({deeper[0]}, ...). Name them as sources of their own"


def _cut(config: "RootConfig", source: "TokenSource") -> str | None:
    from harness.data.check import find_tokenizer
    from harness.data.inspection.truncation import truncation_warning

    try:
        return truncation_warning(source, find_tokenizer(config.data, source))
    except OSError as error:
        return f"{source.key}: {error.filename} cannot be read: {error.strerror}"


def _check_coverage(config: "RootConfig", report: Report) -> None:
    from harness.data.coverage import coverage
    from harness.data.order import open_order

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            order = open_order(config.data, config.train.global_batch_size, outlines=True)
    except DataError:
        return  # said already
    by_name = {found.name: found for found in report.sources if found.group == "sources"}
    for number, source in enumerate(order.sources):
        found, seen = by_name.get(source.name), coverage(order, number)
        if seen.problem:
            report.problems.append(seen.problem)
        if found is not None:
            found.windows = seen.windows
            found.wasted = order.windows[number].wasted
            found.reached = "every sequence" if seen.whole else f"each of {seen.looked_at:,} looked at"


def _warm(files: "list[FileResidency]", threads: int, report: Report) -> None:
    from harness.data.residency import recall

    cold = [file for file in files if file.resident < RESIDENT * file.size]

    def bring(file: "FileResidency", told: Callable[[int], None]) -> list[str]:
        try:
            recall(file, told)
        except OSError as error:
            return [f"{file.path} could not be brought back: {error.strerror or error}"]
        return []

    for found in _in_parallel(cold, bring, sum(file.size for file in cold), threads, "warming"):
        report.problems += found


def _check_content(config: "RootConfig", sources: "list[TokenSource]", threads: int, report: Report) -> None:
    from harness.data.full_check import Progress, check_file, progress_path

    files = [file for source in sources for file in _expectations(config, source, report)]
    progress = Progress(progress_path("\n".join(str(file.path) for file in files)))
    waiting = []
    for file in files:
        earlier = progress.problems(file)
        if earlier is None:
            waiting.append(file)
        else:
            report.problems += earlier
    if len(waiting) < len(files):
        report.warnings.append(
            f"{len(files) - len(waiting):,} files were gone through before, by a check that was interrupted"
        )

    def look(file: "Expectation", told: Callable[[int], None]) -> list[str]:
        found = check_file(file, told)
        progress.done(file, found)
        return found

    for found in _in_parallel(waiting, look, sum(file.path.stat().st_size for file in waiting), threads, "checking"):
        report.problems += found
    progress.forget()


def _expectations(config: "RootConfig", source: "TokenSource", report: Report) -> "Iterable[Expectation]":
    from harness.data.check import resolve_eos
    from harness.data.full_check import Expectation
    from harness.data.origins import list_folder, manifest_sums

    try:
        eos = resolve_eos(config.data, [source])
        sums = manifest_sums(str(source.path), list_folder(str(source.path), source.key))
    except (DataError, OSError) as error:
        report.problems.append(str(error))
        return
    for file in source.files:
        yield Expectation(
            file.path, source.key, source.token_size, config.model.vocab_size, eos, sums.get(file.path.name)
        )


def _in_parallel(
    items: list[Item], work: Callable[[Item, Callable[[int], None]], list[str]], size: int, threads: int, what: str
) -> Iterable[list[str]]:
    """The findings of `work` on each item, with a progress bar of `size` bytes on a terminal."""
    from tqdm import tqdm

    with (
        tqdm(total=size, desc=what, unit="B", unit_scale=True, disable=None, file=sys.stderr) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):

        def told(count: int) -> None:
            bar.update(count)

        try:
            yield from pool.map(lambda item: work(item, told), items)
        except BaseException:  # Ctrl-C: do not go through all that is still waiting
            pool.shutdown(wait=False, cancel_futures=True)
            raise
