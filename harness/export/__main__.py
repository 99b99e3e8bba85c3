"""The command line of `python -m harness.export`."""

import argparse
import sys
from pathlib import Path

from harness.export.errors import ExportError

DTYPES = ("bfloat16", "float32")


def main(arguments: list[str] | None = None) -> int:
    """Export; the exit code: 0 done, 2 nothing was written, 130 stopped by the keyboard."""
    options = _parser().parse_args(arguments)
    # nothing heavy before this line: --help must answer at once
    from harness.export.export import Request, export
    from harness.run.folder import RunFolderError

    try:
        exported = export(Request(**vars(options)))
    except (ExportError, RunFolderError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print("\n".join([*exported.remarks, str(exported.folder)]))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.export",
        description="Write a run's weights as a Hugging Face model: a folder that "
        "AutoModelForCausalLM.from_pretrained, vLLM and model.init_from load.",
    )
    parser.add_argument("run", help="name of a run or path of its folder")
    parser.add_argument("--step", type=int, help="step of the checkpoint to take (default: the newest complete one)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder to make, complete or not at all (default: RUN/export/step-N)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="number format of the weights (default: %(default)s)"
    )
    parser.add_argument("--ema", action="store_true", help="the moving average of the weights (optim.ema_decay)")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    parser.add_argument(
        "--tokenizer", metavar="DIR", help="folder of the tokenizer to put in (default: the one behind the run's data)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
