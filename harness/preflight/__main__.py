"""The command line of `python -m harness.preflight`."""

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from harness.config.arguments import add_overrides
from harness.preflight.steps import STEPS, Result, Step, run_steps

OK, FAILED = 0, 1
"""Exit codes: nothing failed; a step did."""


def main(arguments: list[str] | None = None) -> int:
    """Look at everything; the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    if options.list:
        width = max(len(step.name) for step in STEPS)
        print("\n".join(f"{step.name:<{width}}  {step.about}" for step in STEPS))
        return OK
    # nothing heavy before this line: --help and --list must answer at once
    from harness.preflight.report import as_json, beginning, lines, passed, verdict
    from harness.run.files import write_json

    results: list[Result] = []
    on_terminal = sys.stdout.isatty()
    try:
        for event in run_steps(options.overrides, options.config_dir, options.only):
            if isinstance(event, Step):
                if on_terminal:
                    print(beginning(event.name), end="\r", flush=True)
                continue
            results.append(event)
            print(lines(event, options.verbose), flush=True)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    print(verdict(results))
    if options.json is not None:
        write_json(options.json, as_json(results, options.overrides))
    return OK if passed(results) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.preflight",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Look at everything that could stop a run later: to be run before a long one, on the machine that it is\n"
        "launched from, with the overrides that it is launched with. Submits nothing and leaves nothing behind.",
        epilog="""  python -m harness.preflight +exp=smol3b cluster.partition=gpu
  python -m harness.preflight +exp=smol3b --only data,storage
  srun -N1 --gpus-per-node=8 python -m harness.preflight +exp=smol3b --only gpus,layout,resume

Exit code: 0 nothing failed, 1 something did.""",
    )
    add_overrides(parser)
    parser.add_argument(
        "--only", type=_names, default=[step.name for step in STEPS], metavar="NAME[,NAME]", help="these steps alone"
    )
    parser.add_argument("--list", action="store_true", help="print the steps and what they look at")
    parser.add_argument("--json", type=_writable, metavar="FILE", help="write everything that was found to FILE")
    parser.add_argument("-v", "--verbose", action="store_true", help="show the details of every step")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    known = [step.name for step in STEPS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise argparse.ArgumentTypeError(f"no such step as {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def _writable(text: str) -> Path:
    """Known before minutes are spent."""
    path = Path(text)
    if not path.absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: no such folder")
    return path


def _end(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for ending in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what we have started must not go on without us
        if signal.getsignal(ending) is not signal.SIG_IGN:
            signal.signal(ending, _end)
    sys.exit(main())
