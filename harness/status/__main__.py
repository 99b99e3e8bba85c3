"""The command line of `python -m harness.status`."""

import argparse
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
        print(render(gather(RunFolder(path.resolve()))))
    except RunFolderError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _find(name: str | None, runs_dir: Path) -> Path | None:
    """The named run's folder, or that of the newest launch."""
    if name is not None:
        return Path(name) if Path(name).is_dir() else runs_dir / name
    records = sorted(runs_dir.glob("*/run.json"), key=lambda path: path.stat().st_mtime)
    return records[-1].parent if records else None


if __name__ == "__main__":
    sys.exit(main())
