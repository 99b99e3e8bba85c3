"""The command line of `harness.data prepare` and `corpus`."""

import argparse
from pathlib import Path

from harness.data.preparation.inputs import FORMATS


def add_prepare(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `prepare`."""
    parser = commands.add_parser(
        "prepare", help="turn documents into token files", description="Turn documents into token files."
    )
    add = parser.add_argument
    add(
        "--input",
        required=True,
        action="append",
        help="file or folder, a data set saved with save_to_disk, or a hub name; repeatable",
    )
    add("--output", required=True, type=Path, help="folder to make; complete or absent, never overwritten")
    add("--format", choices=FORMATS, help="default: by file names; needed for a hub name")
    add("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    add("--tokenizer", metavar="PATH", help="folder or tokenizer.json (default: train a byte-level BPE)")
    add("--vocab-size", type=int, metavar="N", help="size of the tokenizer to train (default: 4096)")
    add("--eos-token", metavar="TEXT", help="end-of-document token, where --tokenizer does not name it")
    add("--recipe", type=Path, metavar="YAML", help="what to drop: conf/recipes/web.yaml is an example")
    add(
        "--keep-removed",
        type=int,
        default=0,
        metavar="N",
        help="keep N dropped documents a reason and task in logs/removed",
    )
    add(
        "--max-bad-lines",
        type=int,
        default=0,
        metavar="N",
        help="tolerate up to N bad rows per file: malformed JSON, no text under --text-key (default: 0)",
    )
    add("--workers", type=int, metavar="N", help="processes at once on this machine (default: one per core)")
    add(
        "--slurm",
        metavar="K=V,...",
        help="as array jobs: partition=cpu,time=4:00:00,tasks=50,cpus=1,mem_gb=4,account=...",
    )
    add("--restart", action="store_true", help="begin afresh where a call with other options left something unfinished")
    parser.set_defaults(run=_prepare)


def add_corpus(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `corpus`."""
    parser = commands.add_parser(
        "corpus", help="get text for the demo", description="Get a few megabytes of real text."
    )
    parser.add_argument("--output", required=True, type=Path, help="folder to make")
    parser.set_defaults(run=_corpus)


def _prepare(options: argparse.Namespace) -> int:
    from harness.data.preparation.prepare import Request, prepare

    wanted = {key: value for key, value in vars(options).items() if key not in ("command", "run")}
    try:
        prepare(Request(**wanted))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("what was completed is kept: the same command goes on from there") from None
    return 0


def _corpus(options: argparse.Namespace) -> int:
    from harness.data.preparation.corpus import make_corpus

    try:
        print(make_corpus(options.output))
    except KeyboardInterrupt:
        raise KeyboardInterrupt("nothing was written") from None
    return 0
