"""`python -m harness.data checksum PATH`: checksums for token files that were made elsewhere. Files that have them are passed over."""

import argparse
from pathlib import Path

from harness.data.documents.passed_over import PassedOver, counts, sentence
from harness.data.documents.walk import walk
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
    written, before, passed_over = add_checksums(path.expanduser())
    had = f", {before} had theirs" if before else ""
    print(f"{path}: checksums written for {written} token file(s){had}; {sentence(counts(passed_over))}")
    return 0


def add_checksums(path: Path) -> tuple[int, int, list[PassedOver]]:
    """Write what is missing; returns how many were written, how many were there, and what was not looked into.

    Links to folders are followed. Raises DataError for what it cannot do.
    """
    from tqdm import tqdm

    from harness.data.checksums import write_checksums

    files, passed_over = ([path], []) if path.is_file() else _token_files(path)
    if not files or (path.is_file() and path.suffix != ".ds"):
        raise DataError(f"{path}: no token file there (their names end in .ds)")
    todo = [file for file in files if not _has_checksums(file)]
    try:
        with tqdm(total=sum(file.stat().st_size for file in todo), desc="checksums", unit="B", unit_scale=True) as bar:
            for file in todo:
                write_checksums(file, bar.update)
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot read or write it: {error.strerror}") from None
    return len(todo), len(files) - len(todo), passed_over


def _token_files(folder: Path) -> tuple[list[Path], list[PassedOver]]:
    """All below a folder, and what the walk passed over."""
    if not folder.is_dir():
        return [], []
    try:
        found = walk(str(folder))
    except DataError as error:
        raise DataError(str(error).removeprefix("--input ")) from None
    return [Path(file.path) for file in found.files if file.name.endswith(".ds")], found.passed_over


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
