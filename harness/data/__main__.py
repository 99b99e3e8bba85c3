"""Command line: `python -m harness.data prepare` makes token files, `corpus` gets text for the demo, `show` prints a batch."""

import argparse
import sys
from pathlib import Path

from harness.data import check_command, stage_command
from harness.data.errors import DataError
from harness.data.inputs import FORMATS


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input."""
    options = _parse(arguments)
    try:
        if options.command == "corpus":
            from harness.data.corpus import make_corpus

            print(make_corpus(options.output))
        elif options.command == "show":
            from harness.data.show import as_json, render, show

            found = show(options.run, options.runs_dir, options.step, rank=options.rank, most=options.samples)
            print(as_json(found) if options.json else render(found))
        elif options.command == "stage":
            return stage_command.run(options)
        elif options.command == "check":
            return check_command.run(options)
        else:
            from harness.data.prepare import Request, prepare

            wanted = {key: value for key, value in vars(options).items() if key != "command"}
            prepare(Request(**wanted))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        made = options.command in ("prepare", "corpus")
        print("stopped; nothing was written" if made else "stopped", file=sys.stderr)
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Overrides may stand before, between and after the options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m harness.data", description="Prepare data for training.")
    commands = parser.add_subparsers(dest="command", required=True)
    prepare = commands.add_parser(
        "prepare", help="turn documents into token files", description="Turn documents into token files."
    )
    prepare.add_argument(
        "--input", required=True, help="file or folder, a data set saved with save_to_disk, or a hub name"
    )
    prepare.add_argument(
        "--output", required=True, type=Path, help="folder to make; complete or absent, never overwritten"
    )
    prepare.add_argument("--format", choices=FORMATS, help="default: by file names; needed for a hub name")
    prepare.add_argument("--text-key", default="text", metavar="KEY", help="key or column of the text (default: text)")
    prepare.add_argument(
        "--tokenizer", metavar="PATH", help="folder or tokenizer.json (default: train a byte-level BPE)"
    )
    prepare.add_argument("--vocab-size", type=int, metavar="N", help="size of the tokenizer to train (default: 4096)")
    prepare.add_argument(
        "--eos-token", metavar="TEXT", help="end-of-document token, where --tokenizer does not name it"
    )
    prepare.add_argument("--workers", type=int, metavar="N", help="processes at once (default: one per core)")
    corpus = commands.add_parser(
        "corpus", help="get text for the demo", description="Get a few megabytes of real text."
    )
    corpus.add_argument("--output", required=True, type=Path, help="folder to make")
    show = commands.add_parser(
        "show",
        help="print what a step of a run trains on",
        description="Print what a step of a run trains on, or will: sources, files, documents, text.",
    )
    show.add_argument("run", help="name of a run or path of its folder")
    show.add_argument("--step", required=True, type=int, metavar="N", help="optimizer step, counted from 1")
    show.add_argument("--rank", type=int, metavar="R", help="only what this data-parallel rank sees (default: all)")
    show.add_argument(
        "--samples", type=int, default=4, metavar="K", help="samples whose text is printed, -1 for all (default: 4)"
    )
    show.add_argument("--json", action="store_true", help="for programs; text is never shortened")
    show.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    stage_command.add_parser(commands)
    check_command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
