"""The command line of `python -m harness.status`."""

import argparse
import contextlib
import os
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.status", description="How a run is doing, on one screen.")
    parser.add_argument("run", nargs="?", help="name of a run or path of its folder; default: the one launched last")
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"), help="folder of all runs (default: runs)")
    options = parser.parse_args(arguments)
    from harness.run.folder import RunFolder, RunFolderError
    from harness.status.report import gather, render

    path = _find(options.run, options.runs_dir)
    if path is None:
        print(f"no run in {options.runs_dir}: name one, or give --runs-dir", file=sys.stderr)
        return 2
    try:
        print(render(gather(RunFolder(path.resolve()))), flush=True)
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `status | head`: the reader has seen enough, and Python must not say so again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _find(name: str | None, runs_dir: Path) -> Path | None:
    """The named run's folder, or that of the newest launch."""
    from harness.run.folder import find_run

    if name is not None:
        return find_run(name, runs_dir)
    launched: list[tuple[float, Path]] = []
    for record in runs_dir.glob("*/run.json"):
        with contextlib.suppress(OSError):  # a link to nothing, or a run that is being removed
            launched.append((record.stat().st_mtime, record.parent))
    return max(launched)[1] if launched else None


if __name__ == "__main__":
    sys.exit(main())
