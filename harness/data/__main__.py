"""Command line of the data path: `python -m harness.data COMMAND`. Each command's file says what it does."""

import argparse
import sys

from harness.data.errors import DataError
from harness.data.preparation.checksum_command import add_checksum
from harness.data.preparation.command import add_corpus, add_prepare
from harness.data.preparation.tokenizer_command import add_tokenizer
from harness.data.report.command import add_report
from harness.data.show_command import add_show


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input."""
    options = _parser().parse_args(arguments)
    try:
        exit_code: int = options.run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {interrupt}" if str(interrupt) else "stopped", file=sys.stderr)
        return 130
    return exit_code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.data", description="Prepare data for training, and look at it."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (add_prepare, add_tokenizer, add_checksum, add_report, add_corpus, add_show):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
