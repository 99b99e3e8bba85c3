"""Steps of the datatrove pipeline that `harness.data prepare` runs: strict readers, and one that counts progress.

datatrove's own readers skip what they cannot read with a line in the log. These stop and say where: a corpus that is
silently smaller than its owner thinks is worse than an error. Every document carries its share of the input in
`metadata["size"]` (bytes or rows).
"""

import gzip
import os
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.readers import HuggingFaceDatasetReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader

from harness.data.errors import DataError
from harness.data.inputs import Inputs

SPLIT_CHARS = 100_000
"""Text files longer than this become several documents, cut at the next blank line."""
MAX_CHARS = 1_000_000
"""Where no blank line comes, they are cut here."""


def make_reader(inputs: Inputs, scratch: Path) -> BaseReader:
    """The reader for `inputs`; `scratch` takes its list of files."""
    if inputs.format == "dataset":
        options = {"split": inputs.split} if inputs.split else None
        return HuggingFaceDatasetReader(
            inputs.path, options, adapter=_row, text_key=inputs.text_key, load_from_disk=inputs.split is None
        )
    paths = scratch / "inputs.list"
    paths.write_text("".join(f"{name}\n" for name in inputs.files), encoding="utf-8")
    root = str(inputs.root)
    if inputs.format == "parquet":
        return ParquetReader(root, str(paths), adapter=_row, text_key=inputs.text_key, read_metadata=False)
    if inputs.format == "jsonl":
        return JsonLinesReader(root, str(paths), text_key=inputs.text_key)
    return TextReader(root, str(paths))


def _row(self: BaseReader, data: dict[str, Any], path: str, id_in_file: int | str) -> dict[str, Any]:
    """Adapter for rows of Parquet and `datasets`."""
    text = _text_of(data, self.text_key, f"{path} row {id_in_file}")
    return {"text": text, "id": f"{path}/{id_in_file}", "metadata": {"size": 1}}


def _text_of(data: Any, key: str, where: str) -> str:
    """The document's text; "" (which is skipped) for null."""
    if not isinstance(data, dict) or key not in data:
        keys = ", ".join(map(str, data)) if isinstance(data, dict) else f"none, it is a {type(data).__name__}"
        raise DataError(f"{where}: no key {key!r}; its keys: {keys}. Pass --text-key.")
    text = data[key]
    if text is not None and not isinstance(text, str):
        raise DataError(f"{where}: {key!r} holds a {type(text).__name__}, not text. Pass --text-key.")
    return text or ""


class TextReader(BaseDiskReader):
    """A file is a document; a long one is cut into several between paragraphs."""

    name = "Text"

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of one UTF-8 file."""
        path = self.data_folder.resolve_paths(filepath)
        with self.data_folder.open(filepath, "rt", encoding="utf-8") as file:
            try:
                for number, text in enumerate(_pieces(file)):
                    yield Document(text, f"{filepath}/{number}", metadata={"size": len(text.encode())})
            except UnicodeDecodeError as error:
                raise DataError(f"{path}: not UTF-8 text ({error.reason}). Convert it, or leave it out.") from None


def _pieces(file: IO[str]) -> Iterator[str]:
    """The file's text in stretches of whole paragraphs; what is blank is dropped."""
    lines: list[str] = []
    size = 0
    while line := file.readline(MAX_CHARS):
        lines.append(line)
        size += len(line)
        if size >= MAX_CHARS or (size >= SPLIT_CHARS and not line.strip()):
            yield "".join(lines)
            lines, size = [], 0
    if rest := "".join(lines).strip():
        yield rest


class JsonLinesReader(BaseDiskReader):
    """A line is a document: a JSON object with its text under `text_key`. Files may be gzipped."""

    name = "JSON lines"

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of one file."""
        path = self.data_folder.resolve_paths(filepath)
        with self.data_folder.open(filepath, "rb", compression="infer") as file:
            try:
                for number, line in enumerate(file, start=1):
                    if line.strip() and (text := self._text(line, f"{path} line {number}")):
                        yield Document(text, f"{filepath}/{number}", metadata={"size": len(line)})
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{path}: the gzip file is damaged or cut off: {error}") from None

    def _text(self, line: bytes, where: str) -> str:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{where}: not JSON: {error}") from None
        return _text_of(row, self.text_key, where)


class CountProgress(PipelineStep):
    """Passes documents on and keeps their summed size in a file per task, which `done` adds up in another process."""

    name = "Progress"
    type = "Progress"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Iterator[Document], rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Count while passing on."""
        size, written = 0, 0.0
        with (self.folder / f"{rank:05d}").open("wb", buffering=0) as file:
            for document in data:
                size += document.metadata["size"]
                if time.monotonic() - written > 0.1:
                    os.pwrite(file.fileno(), size.to_bytes(8, "little"), 0)
                    written = time.monotonic()
                yield document
            os.pwrite(file.fileno(), size.to_bytes(8, "little"), 0)

    def done(self) -> int:
        """What all tasks have read so far."""
        return sum(int.from_bytes(file.read_bytes(), "little") for file in self.folder.iterdir())
