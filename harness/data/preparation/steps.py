"""Steps of the datatrove pipelines that `harness.data prepare` runs, where datatrove has none of its own."""

import contextlib
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import JsonlWriter

from harness.data.documents.compressed import open_documents
from harness.data.errors import DataError
from harness.data.preparation.train_tokenizer import train_tokenizer
from harness.run.files import write_json

TRAINING_CHARS = 64_000_000
"""Text that the tokenizer is trained on, at most: taken evenly from all tasks."""


class CountProgress(PipelineStep):
    """Passes documents on and keeps how much went by in a file per task, which `progress_done` adds up in another process.

    What is counted is the documents' share of the input (`metadata["size"]`), or the documents themselves.
    """

    name = "Progress"
    type = "Progress"

    def __init__(self, folder: Path, documents: bool = False) -> None:
        super().__init__()
        self.folder = folder
        self.documents = documents

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Count while passing on."""
        with _counter(self.folder, rank) as count:
            for document in data:
                count(1 if self.documents else document.metadata["size"])
                yield document


@contextlib.contextmanager
def _counter(folder: Path, rank: int) -> Iterator[Callable[[int], None]]:
    """A function that adds to the task's count; the file follows at most ten times a second."""
    total, written = 0, 0.0

    def write() -> None:
        os.pwrite(file.fileno(), total.to_bytes(8, "little"), 0)

    def count(size: int) -> None:
        nonlocal total, written
        total += size
        if time.monotonic() - written > 0.1:
            write()
            written = time.monotonic()

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{rank:05d}").open("wb", buffering=0) as file:
        yield count
        write()


def progress_done(folder: Path) -> int:
    """What all tasks have counted so far."""
    return sum(int.from_bytes(file.read_bytes(), "little") for file in folder.iterdir()) if folder.is_dir() else 0


class Tally(PipelineStep):
    """Passes documents on and counts them and their characters under the name of the step before it."""

    type = "Tally"

    def __init__(self, after: str, languages: bool = False) -> None:
        self.name = after
        super().__init__()
        self.after = after
        self.languages = languages

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Count while passing on."""
        for document in data:
            self.stat_update("documents")
            self.stat_update("characters", value=len(document.text))
            if self.languages:
                self.stat_update(f"language_{document.metadata['language']}")
            yield document


class DropWithoutText(PipelineStep):
    """Drops documents of which a filter that drops lines has left none."""

    name = "Without text"
    type = "Filter"

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Pass the others on."""
        for document in data:
            if document.text:
                yield document
            else:
                self.stat_update("dropped_without_text")


class KeptDocuments(PipelineStep):
    """Reads what the same task of the stage `filter` kept; a task that kept nothing has no file."""

    name = "Kept documents"
    type = "Reader"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """This task's documents in the order in which they were written. Raises DataError for a damaged file."""
        file = self.folder / f"{rank:05d}.jsonl.gz"
        if not file.exists():
            return
        with open_documents(str(file)) as lines:
            for line in lines:
                content = orjson.loads(line)
                self.stat_update("documents")
                yield Document(content["text"], content["id"], metadata=content["metadata"])


class RemovedSample(JsonlWriter):
    """Keeps the first `count` documents that a step removes for each reason, in each task."""

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(str(folder), compression=None)
        self.count = count
        self.seen: Counter[str] = Counter()

    def write(self, document: Document, rank: int = 0, **kwargs: Any) -> None:
        """Write it, or not."""
        reason = str(document.metadata.get("filter_reason", ""))
        self.seen[reason] += 1
        if self.seen[reason] <= self.count:
            super().write(document, rank, **kwargs)


class TrainTokenizer(PipelineStep):
    """Trains the tokenizer on the documents that `documents` yields for all `tasks`, evenly; one task does it."""

    name = "Train"
    type = "Tokenizer"

    def __init__(
        self, documents: Callable[[], Sequence[PipelineStep]], tasks: int, path: Path, vocab_size: int, progress: Path
    ) -> None:
        super().__init__()
        self.documents = documents
        self.tasks = tasks
        self.path = path
        self.vocab_size = vocab_size
        self.progress = progress

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Train and save."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _counter(self.progress, rank) as count:
            train_tokenizer(self._texts(count), self.path, self.vocab_size)

    def _texts(self, count: Callable[[int], None]) -> Iterator[str]:
        for task in range(self.tasks):
            taken, documents = 0, None
            for step in self.documents():
                documents = step.run(documents, task, self.tasks)
            for document in documents or ():
                yield document.text
                taken += len(document.text)
                count(len(document.text))
                if taken * self.tasks >= TRAINING_CHARS:
                    break


class Seal(PipelineStep):
    """Last in a task: checksums of the token files it made, and a sidecar beside each; nothing of a task without text."""

    name = "Checksums"
    type = "Seal"

    def __init__(self, folder: Path, sums: Path, tokenizer_name: str) -> None:
        super().__init__()
        self.folder = folder
        self.sums = sums
        self.tokenizer_name = tokenizer_name

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `sums`/RANK.json: the manifest's entries for this task's files."""
        from harness.data.checksums import write_checksums

        for token_file in sorted(self.folder.glob(f"{rank:05d}_*.ds")):
            if token_file.stat().st_size == 0:
                for leftover in self.folder.glob(f"{token_file.name}*"):
                    leftover.unlink()
                continue
            metadata = token_file.with_name(
                f"{token_file.name}.metadata"
            )  # datatrove wrote where the tokenizer lay just now
            _, _, rest = metadata.read_text().rpartition("|")
            metadata.write_text(f"{self.tokenizer_name}|{rest}")
            write_checksums(token_file)
        self.sums.mkdir(parents=True, exist_ok=True)
        entries = [file_entry(file, self.folder) for file in sorted(self.folder.glob(f"{rank:05d}_*.ds*"))]
        write_json(self.sums / f"{rank:05d}.json", entries)


def file_entry(file: Path, root: Path) -> dict[str, Any]:
    """A file's line in the manifest; the file is on disk afterwards."""
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        os.fsync(handle.fileno())
    return {"name": str(file.relative_to(root)), "bytes": file.stat().st_size, "sha256": digest}


def read_sums(folder: Path, tasks: int) -> list[dict[str, Any]]:
    """What `Seal` wrote in all tasks. Raises DataError where a task's file is missing."""
    entries: list[dict[str, Any]] = []
    for rank in range(tasks):
        try:
            entries += json.loads((folder / f"{rank:05d}.json").read_text())
        except (OSError, ValueError):
            raise DataError(f"{folder}/{rank:05d}.json is missing or damaged. Prepare again with --restart.") from None
    return entries
