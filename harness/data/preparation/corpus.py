"""Real text for the demo that any Debian machine can get: the sources of Python's documentation, taken from its package
without installing it, or the shorter help topics that come with Python itself."""

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from harness.data.errors import DataError

PACKAGES = ("python3.11-doc", "python3.13-doc", "python3.12-doc", "python3.10-doc")
"""Debian's and Ubuntu's packages, the first that can be had is taken. reStructuredText under html/_sources."""
PACKAGE_LICENCE = "PSF-2.0 (Python Software Foundation License), see COPYRIGHT"
MAX_BYTES = 12_000_000
"""Text taken, at most."""
DOWNLOAD_SECONDS = 60
APT_OPTIONS = ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10"]
SOURCES = "SOURCES.txt"


def make_corpus(output: Path) -> str:
    """Write `output`/text/*.txt and `output`/SOURCES.txt and return what was done, in a sentence.

    Needs neither root nor network. An existing corpus is left as it is. Raises DataError when `output` is something else
    or cannot be written.
    """
    output = output.expanduser().absolute()
    if (output / SOURCES).is_file():
        return f"{output} is already there: {(output / SOURCES).read_text().splitlines()[0]}"
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise DataError(f"--output {output}: exists and is no corpus made by this command. Choose another folder.")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as scratch:
            made = Path(scratch) / "corpus"
            (made / "text").mkdir(parents=True)
            line, left_out = _from_package(Path(scratch), made) or _from_pydoc(made)
            if left_out:
                line += f" {left_out} more texts are left out: blank, or beyond {MAX_BYTES / 1e6:.0f} MB."
            files = list((made / "text").iterdir())
            size = sum(file.stat().st_size for file in files)
            (made / SOURCES).write_text(f"{line}\n{len(files)} files, {size} bytes of text\n")
            os.rename(made, output)
    except OSError as error:
        raise DataError(f"--output {output}: cannot write it: {error.strerror}") from None
    return f"{output}: {len(files)} files, {size / 1e6:.1f} MB of text. {line}"


def _from_package(scratch: Path, made: Path) -> tuple[str, int] | None:
    """Download and unpack the first package that can be had; None where there is none (no apt, no network).

    Returns what it is, and how many of its texts were left out.
    """
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    archive = _download(scratch, APT_OPTIONS)
    if archive is None:  # a fresh container has no package lists: get some of our own, which needs no root
        lists, cache = scratch / "lists", scratch / "cache"
        (lists / "partial").mkdir(parents=True)
        (cache / "archives" / "partial").mkdir(parents=True)
        options = [*APT_OPTIONS, "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
        archive = _download(scratch, options) if _run(["apt-get", *options, "update"], scratch) else None
    tree = scratch / "tree"
    if archive is None or not _run(["dpkg-deb", "--extract", str(archive), str(tree)], scratch):
        return None
    written, left_out = _write_texts(_documentation(tree), made / "text")
    if not written:
        return None
    for copyright_file in tree.glob("usr/share/doc/*/copyright"):
        shutil.copyfile(copyright_file, made / "COPYRIGHT")
    package, version = archive.name.split("_")[:2]
    return f"Package {package}, version {version.replace('%3a', ':')}, licence {PACKAGE_LICENCE}.", left_out


def _download(folder: Path, options: list[str]) -> Path | None:
    for package in PACKAGES:
        if _run(["apt-get", *options, "download", package], folder):
            return next(folder.glob(f"{package}_*.deb"), None)
    return None


def _run(command: list[str], folder: Path) -> bool:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, timeout=DOWNLOAD_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def _documentation(tree: Path) -> Iterator[tuple[str, str]]:
    for file in sorted(tree.glob("usr/share/doc/*/html/_sources/**/*.rst.txt")):
        folder = next(parent for parent in file.parents if parent.name == "_sources")
        name = str(file.relative_to(folder)).replace("/", "-").removesuffix(".rst.txt")
        yield name, file.read_text(encoding="utf-8", errors="replace")


def _from_pydoc(made: Path) -> tuple[str, int]:
    from pydoc_data.topics import topics

    _, left_out = _write_texts(
        ((re.sub(r"\W", "_", name), text) for name, text in sorted(topics.items())), made / "text"
    )
    return (
        f"Help topics of Python {platform.python_version()} (pydoc_data.topics), licence PSF-2.0 (Python Software Foundation "
        "License): no documentation package could be had.",
        left_out,
    )


def _write_texts(texts: Iterator[tuple[str, str]], folder: Path) -> tuple[int, int]:
    """Write files until the corpus is full; returns how many were written and left out. Two of one name are both kept."""
    total = written = left_out = 0
    for name, text in texts:
        data = text.encode()
        if not data.strip() or total + len(data) > MAX_BYTES:
            left_out += 1
            continue
        file = folder / f"{name}.txt"
        if file.exists():
            file = folder / f"{name}-{written}.txt"
        file.write_bytes(data)
        total, written = total + len(data), written + 1
    return written, left_out
