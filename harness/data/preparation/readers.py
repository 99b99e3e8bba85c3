"""The first step of the pipelines of `harness.data prepare`: documents, and an account of what was not read.

datatrove's own readers skip what they cannot read with a line in the log. This one stops and says where: a corpus that is
silently smaller than its owner thinks is worse than an error. Rows that are no documents may be tolerated, up to a limit
that the user sets; those and rows without text are counted, and listed with their places. Every document carries its share
of the input in `metadata["size"]` (bytes or rows).
"""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from harness.data.documents.passed_over import BAD_ROW, EMPTY_TEXT, LISTED, PassedOver, as_record, printable
from harness.data.documents.rows import Row, read_rows, row_of
from harness.data.documents.walk import look_at
from harness.data.errors import DataError
from harness.data.preparation.inputs import Inputs
from harness.run.files import write_json

DATASET_BATCH = 1000


def read_documents(inputs: Inputs, keys: Sequence[str] | None = None) -> Iterator[str]:
    """The texts of all documents, here and now; `keys`: join the texts of several keys."""
    for document in DocumentReader(inputs, keys=keys).run(None, 0, 1):
        yield document.text


class DocumentReader(PipelineStep):
    """Yields the documents of one task's files, which are every `world_size`-th from number `rank` on.

    A row that is no document (malformed JSON, no text under its key) stops the reading, unless it is one of the first
    `max_bad_rows` of its file; None: there is no option to allow any. `account`: a folder for RANK.json, which lists the rows that were passed over; it is
    written when the task has read all.
    """

    name = "Documents"
    type = "Reader"

    def __init__(
        self,
        inputs: Inputs,
        *,
        keys: Sequence[str] | None = None,
        max_bad_rows: int | None = None,
        account: Path | None = None,
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.keys = tuple(keys or [inputs.text_key])
        self.max_bad_rows = max_bad_rows
        self.account = account

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Documents, in order. Raises DataError or OSError, which name the file."""
        entries: list[PassedOver] = []
        if self.inputs.format == "dataset":
            yield from self._documents(self.inputs.path, self._dataset_rows(rank, world_size), entries)
        else:
            for number in range(rank, len(self.inputs.files), world_size):
                path = self.inputs.files[number]
                yield from self._documents(path, read_rows(path, self.inputs.format, self.keys), entries)
                _refuse_changed(path, self.inputs.stats[number])
        if self.account is not None:
            self.account.mkdir(parents=True, exist_ok=True)
            write_json(self.account / f"{rank:05d}.json", [as_record(entry) for entry in entries])

    def _documents(self, path: str, rows: Iterable[Row], entries: list[PassedOver]) -> Iterator[Document]:
        name = printable(path)
        bad, empty = PassedOver(name, BAD_ROW), PassedOver(name, EMPTY_TEXT)
        for row in rows:
            if row.text:
                yield Document(row.text, f"{name}/{row.where}", metadata={"size": row.size})
                continue
            entry = bad if row.problem else empty
            entry.rows += 1
            if entry.rows <= LISTED:
                entry.where += filter(None, [f"{row.where}: {row.problem}" if row.problem else row.where])
            if bad.rows > (self.max_bad_rows or 0):
                raise DataError(self._too_many(name, row, bad.rows))
        entries += [entry for entry in (bad, empty) if entry.rows]

    def _too_many(self, name: str, row: Row, count: int) -> str:
        allowed = self.max_bad_rows
        advice = "Mend it, or leave it out." if allowed is None else "Mend it, or allow some with --max-bad-lines."
        earlier = (
            f" It is bad row number {count} of this file: more than --max-bad-lines {allowed}." if count > 1 else ""
        )
        problem = row.problem if row.problem.endswith(".") else f"{row.problem}."
        return f"{name} {row.where}: {problem}{earlier} {advice}"

    def _dataset_rows(self, rank: int, world_size: int) -> Iterator[Row]:
        from datasets import load_dataset, load_from_disk

        path, split = self.inputs.path, self.inputs.split
        try:
            data_set = load_from_disk(path) if split is None else load_dataset(path, split=split)
            part = data_set.select_columns(list(self.keys)).shard(world_size, rank, contiguous=False)
            for number, content in enumerate(
                dict(zip(batch, values, strict=True))
                for batch in part.iter(DATASET_BATCH)
                for values in zip(*batch.values(), strict=True)
            ):
                yield row_of(content, self.keys, f"row {rank + number * world_size}", 1)
        except (OSError, ValueError, RuntimeError) as error:  # Arrow's, of damaged files
            raise DataError(f"--input {path}: datasets cannot read it: {error}") from None


def _refuse_changed(path: str, expected: tuple[int, int]) -> None:
    """Raises DataError for a file that is not what it was when the input was listed. Raises OSError."""
    found = look_at(path)
    if (found.size, found.modified_ns) != expected:
        raise DataError(f"{printable(path)}: changed while it was read. Prepare again once nothing writes to it.")
