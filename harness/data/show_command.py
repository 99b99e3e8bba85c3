"""The command line of `harness.data show`."""

import argparse
from pathlib import Path


def add_show(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `show`."""
    parser = commands.add_parser(
        "show",
        help="print what a step of a run trains on",
        description="Print what a step of a run trains on, or will: sources, files, documents, text.",
    )
    add = parser.add_argument
    add("run_name", metavar="run", help="name of a run or path of its folder")
    add("--step", required=True, type=int, metavar="N", help="optimizer step, counted from 1")
    add("--rank", type=int, metavar="R", help="only what this data-parallel rank sees (default: all)")
    add("--samples", type=int, default=4, metavar="K", help="samples whose text is printed, -1 for all (default: 4)")
    add("--json", action="store_true", help="for programs; text is never shortened")
    add("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.set_defaults(run=_show)


def _show(options: argparse.Namespace) -> int:
    from harness.data.show import as_json, render, show

    found = show(options.run_name, options.runs_dir, options.step, rank=options.rank, most=options.samples)
    print(as_json(found) if options.json else render(found))
    return 0
