"""Command line of the data path: `python -m harness.data COMMAND`. Each command's file says what it does."""

import argparse
import sys
from typing import Any

from harness.data.check_command import add_check
from harness.data.errors import DataError
from harness.data.preparation.checksum_command import add_checksum
from harness.data.preparation.command import add_corpus, add_prepare
from harness.data.preparation.tokenizer_command import add_tokenizer
from harness.data.report.command import add_report
from harness.data.show_command import add_show
from harness.data.stage_command import add_stage


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code: 0 done, 2 bad input."""
    options = _parse(arguments)
    try:
        exit_code: int = options.run(options)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"stopped; {interrupt}" if str(interrupt) else "stopped", file=sys.stderr)
        return 130
    return exit_code


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    """Overrides may stand before, between and after the options."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    return options


class _StoreOnce(argparse.Action):
    """`store` that refuses an option given twice: argparse would let the last one win, and the first go unread."""

    given = False

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, name: Any = None
    ) -> None:
        if self.given and self.option_strings:
            raise argparse.ArgumentError(self, "given twice, and takes one value")
        self.given = True
        setattr(namespace, self.dest, values)


class _Parser(argparse.ArgumentParser):
    """Of the command line and of each command in it."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for action in (None, "store"):
            self.register("action", action, _StoreOnce)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m harness.data", description="Prepare data for training, and look at it.")
    commands: Any = parser.add_subparsers(dest="command", required=True)
    for add in (add_prepare, add_tokenizer, add_checksum, add_report, add_corpus, add_stage, add_check, add_show):
        add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
