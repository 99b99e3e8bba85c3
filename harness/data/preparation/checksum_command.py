"""`python -m harness.data checksum PATH`: checksums for token files that were made elsewhere. Files that have them are passed over."""

import argparse
from pathlib import Path

from harness.data.errors import DataError


def add_checksum(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `checksum`."""
    about = (
        "Write a file of checksums beside every token file under PATH, so that runs notice damaged data. Call it where the data "
        "is known to be right. Goes on where an earlier call was stopped: files that have checksums are passed over."
    )
    parser = commands.add_parser("checksum", help="write checksums beside token files", description=about)
    parser.add_argument(
        "path", type=Path, metavar="PATH", help="a token file, or a folder with token files at any depth"
    )
    parser.set_defaults(run=lambda options: _run(options.path))


def _run(path: Path) -> int:
    written, before = add_checksums(path.expanduser())
    passed = f", {before} had theirs" if before else ""
    print(f"{path}: checksums written for {written} token file(s){passed}")
    return 0


def add_checksums(path: Path) -> tuple[int, int]:
    """Write what is missing; returns how many were written, and how many were there. Raises DataError for what it cannot do."""
    from tqdm import tqdm

    from harness.data.checksums import write_checksums

    files = [path] if path.is_file() else sorted(path.rglob("*.ds"))
    if not files or (path.is_file() and path.suffix != ".ds"):
        raise DataError(f"{path}: no token file there (their names end in .ds)")
    todo = [file for file in files if not _has_checksums(file)]
    try:
        with tqdm(total=sum(file.stat().st_size for file in todo), desc="checksums", unit="B", unit_scale=True) as bar:
            for file in todo:
                write_checksums(file, bar.update)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot read or write it: {error.strerror}") from None
    return len(todo), len(files) - len(todo)


def _has_checksums(file: Path) -> bool:
    """Whether there are some for a file of this size. Raises DataError for damaged ones, which must not be replaced silently."""
    from harness.data.checksums import Checksums

    try:
        sums = Checksums.open(file)
    except OSError as error:
        raise DataError(f"{file}: cannot read its checksums: {error.strerror}") from None
    if sums is None:
        return False
    try:
        if sums.file_size != file.stat().st_size:
            raise DataError(
                f"{file} has {file.stat().st_size} bytes, and {sums.file_size} when its checksums were made: cut off, or made "
                f"anew. Copy it again; or remove {sums.name} once you know that it is right."
            )
    finally:
        sums.close()
    return True
