"""Whole token files read once, and everything that can be wrong inside them: bytes, tokens, ends of documents."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.data.checksums import Checksums
from harness.data.errors import DataError
from harness.data.token_files import DTYPES
from harness.run.files import append_json_line, read_json_lines

CHUNK_BYTES = 8 << 20
"""Read at once; a multiple of every block size of checksums and of every token."""


@dataclass(frozen=True)
class Expectation:
    """What a file should be."""

    path: Path
    key: str
    """What messages call its source."""
    token_size: int
    vocab_size: int
    eos: int | None
    """Token at the end of each document; None: not looked at."""
    sha256: str | None

    @property
    def identity(self) -> str:
        """Changes with the file and with what is expected of it. Raises OSError."""
        stat = self.path.stat()
        facts = [
            str(self.path),
            stat.st_size,
            stat.st_mtime_ns,
            self.token_size,
            self.vocab_size,
            self.eos,
            self.sha256,
        ]
        return hashlib.blake2b(json.dumps(facts).encode(), digest_size=16).hexdigest()


class Progress:
    """Files that an earlier, interrupted check has been through, in a small file; gone once a check is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._done = {str(line["file"]): list(line["problems"]) for line in read_json_lines(path)}

    def problems(self, file: Expectation) -> list[str] | None:
        """What was found then; None: it was not looked at, or has changed."""
        return self._done.get(file.identity)

    def done(self, file: Expectation, problems: list[str]) -> None:
        """Remember. Raises OSError."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(self._path, {"file": file.identity, "problems": problems})

    def forget(self) -> None:
        """The check is complete: the next one looks at everything anew."""
        self._path.unlink(missing_ok=True)


def progress_path(of: str) -> Path:
    """Where the progress of a check goes, by what it checks: in the user's cache, since data may be read-only."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "harness" / "data-check" / f"{hashlib.blake2b(of.encode(), digest_size=8).hexdigest()}.jsonl"


def check_file(file: Expectation, told: Callable[[int], None]) -> list[str]:
    """Read a whole file and list what is wrong with it. `told` is called with the bytes that have just been read."""
    try:
        return _Check(file).run(told)
    except OSError as error:
        return [f"{file.key}: {file.path} cannot be read: {error.strerror or error}"]
    except DataError as error:  # of its checksums
        return [f"{file.key}: {error}"]


class _Check:
    """One pass over one file."""

    def __init__(self, file: Expectation) -> None:
        self._file = file
        self._name = f"{file.key}: {file.path.name}"
        self._problems: list[str] = []
        self._digest = hashlib.sha256() if file.sha256 else None
        self._outside = 0
        self._first_outside = ""
        self._blocks = 0
        self._first_block = ""

    def run(self, told: Callable[[int], None]) -> list[str]:
        file = self._file
        sums = Checksums.open(file.path)
        try:
            if sums is not None:
                self._check_table(sums)
            documents = _Documents(file)
            offset = 0
            for chunk in _chunks(file.path):
                if self._digest is not None:
                    self._digest.update(chunk)
                if sums is not None and (mismatch := sums.verify(offset, chunk)) is not None:
                    self._first_block = self._first_block or str(mismatch)
                    self._blocks += 1
                tokens = np.frombuffer(
                    chunk[: len(chunk) // file.token_size * file.token_size], DTYPES[file.token_size]
                )
                self._check_range(tokens, offset)
                documents.look(tokens, offset // file.token_size)
                offset += len(chunk)
                told(len(chunk))
            return self._verdict(documents)
        finally:
            if sums is not None:
                sums.close()

    def _check_table(self, sums: Checksums) -> None:
        size = self._file.path.stat().st_size
        if size != sums.file_size:
            raise DataError(
                f"{self._file.path.name} has {size} bytes, and {sums.file_size} when its checksums were made"
            )
        if sums.damaged():
            raise DataError(
                f"{sums.name} is damaged: copy it again, or write it again once the tokens are known to be right"
            )

    def _check_range(self, tokens: np.ndarray, offset: int) -> None:
        if len(tokens) and int(tokens.max()) >= self._file.vocab_size:
            outside = np.flatnonzero(tokens >= self._file.vocab_size)
            if not self._outside:
                at = int(outside[0])
                self._first_outside = f"token {tokens[at]} at byte {offset + at * self._file.token_size}"
            self._outside += len(outside)

    def _verdict(self, documents: "_Documents") -> list[str]:
        if self._digest is not None and self._digest.hexdigest() != self._file.sha256:
            self._problems.append(
                f"{self._name} does not have the sha256 that manifest.json names: it is damaged or from another run. Copy or "
                "prepare it again"
            )
        if self._blocks:
            self._problems.append(f"{self._name} is damaged: {self._first_block}. Copy or tokenise it again")
        if self._outside:
            self._problems.append(
                f"{self._name} holds {self._outside:,} tokens outside model.vocab_size={self._file.vocab_size}, the first is "
                f"{self._first_outside}: damaged, or made with another tokenizer"
            )
        return self._problems + [f"{self._name} {problem}" for problem in documents.problems()]


class _Documents:
    """What stands at the documents' ends, by the index beside the file."""

    def __init__(self, file: Expectation) -> None:
        self._eos = file.eos
        index = file.path.with_name(f"{file.path.name}.index")
        self._ends = np.fromfile(index, "<u8").astype(np.int64) if index.exists() else np.zeros(0, np.int64)
        self._unordered = bool(np.any(self._ends[1:] < self._ends[:-1])) or bool(np.any(self._ends < 0))
        self._wrong = 0
        self._first = ""

    def look(self, tokens: np.ndarray, begin: int) -> None:
        """At the tokens from number `begin` on."""
        if self._eos is None or self._unordered:
            return
        first, last = np.searchsorted(self._ends, [begin + 1, begin + len(tokens) + 1])
        found = tokens[self._ends[first:last] - 1 - begin]
        wrong = np.flatnonzero(found != self._eos)
        if len(wrong) and not self._wrong:
            self._first = f"document {first + int(wrong[0]):,} ends with {found[wrong[0]]}"
        self._wrong += len(wrong)

    def problems(self) -> Iterator[str]:
        if self._unordered:
            yield "has an index whose ends of documents do not rise: it is damaged. Copy or tokenise it again"
        if self._wrong:
            yield (
                f"has {self._wrong:,} of {len(self._ends):,} documents that do not end with the end-of-document token {self._eos} "
                f"({self._first}): attention and positions would run on into the next one. Set data.eos_token_id, or tokenise "
                "again with an end-of-document token"
            )


def _chunks(path: Path) -> Iterator[bytes]:
    """A file past the page cache: what is read once would only push out what is needed again."""
    with open(path, "rb", buffering=0) as file:
        offset = 0
        while chunk := _read(file.fileno(), offset):
            yield chunk
            os.posix_fadvise(file.fileno(), offset, len(chunk), os.POSIX_FADV_DONTNEED)
            offset += len(chunk)


def _read(fd: int, offset: int) -> bytes:
    """CHUNK_BYTES, or what is left of the file."""
    parts, wanted = [], CHUNK_BYTES
    while wanted and (part := os.pread(fd, wanted, offset)):
        parts.append(part)
        offset, wanted = offset + len(part), wanted - len(part)
    return b"".join(parts)
