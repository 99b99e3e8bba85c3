"""The command line of `python -m harness.verify`."""

import argparse
import copy
import sys
from pathlib import Path

from harness.config.arguments import add_overrides
from harness.config.schema import RootConfig, SourceConfig, StageConfig
from harness.verify.errors import VerifyError

PROBLEM = 2
"""Exit code where nothing could be verified."""


def main(arguments: list[str] | None = None) -> int:
    """Verify; the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    # nothing heavy before this line: --help must answer at once
    from harness.config.errors import ConfigError
    from harness.model.composed import composed_run

    try:
        config = composed_run(options.overrides, options.config_dir)
        _check(config)
        from harness.verify.command import Options, run

        asked = Options(options.all, options.full_layout, options.cpu, options.json)
        return run(config, asked)
    except ConfigError as error:
        problems = error.problems
    except VerifyError as error:
        problems = [str(error)]
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    print("Not verified:\n" + "\n".join(f"  - {problem}" for problem in problems), file=sys.stderr)
    return PROBLEM


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m harness.verify",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Prove that a layout computes the same model as one process: trains a small copy of the run for a few\n"
        "steps both ways and compares initial weights, losses, gradients, updated weights and checkpoints.",
        epilog="""  python -m harness.verify +exp=smol3b                  its layout in small, on this machine
  python -m harness.verify +exp=smol3b --all            each kind of layout, on up to four processes, with train.compile
  srun torchrun ... -m harness.verify +exp=smol3b       on the ranks that torchrun has started

Exit code: 0 equal, 1 different, 2 nothing could be verified.""",
    )
    add_overrides(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--all",
        action="store_true",
        help="each kind of layout that fits on four processes, one line each; compiled if the run is (train.compile)",
    )
    which.add_argument("--full-layout", action="store_true", help="the layout as it is, with all of its ranks")
    parser.add_argument("--cpu", action="store_true", help="compute on the CPU also where there are GPUs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was found to FILE")
    return parser


def _check(config: RootConfig) -> None:
    """Raises ConfigError with all that is wrong with the config, but for its data, which is not looked at."""
    from harness.config.check import check
    from harness.config.errors import ConfigError

    looked_at = copy.deepcopy(config)
    looked_at.data.sources, looked_at.data.validation = {"any": SourceConfig()}, {}
    looked_at.data.stages, looked_at.data.change_at = [StageConfig(weights={"any": 1.0})], []
    looked_at.train.eval_every = 0
    looked_at.train.early_stop_evals = 0
    if problems := check(looked_at):
        raise ConfigError(problems)


if __name__ == "__main__":
    sys.exit(main())
