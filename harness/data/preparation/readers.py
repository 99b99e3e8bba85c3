"""Strict readers for the datatrove pipelines of `harness.data prepare`.

datatrove's own readers skip what they cannot read with a line in the log. These stop and say where: a corpus that is
silently smaller than its owner thinks is worse than an error. Lines of JSONL that are broken may be let pass, up to a limit
that the user sets; each is written down. Every document carries its share of the input in
`metadata["size"]` (bytes or rows).
"""

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any

import orjson
from datatrove.data import Document
from datatrove.pipeline.readers import HuggingFaceDatasetReader, ParquetReader
from datatrove.pipeline.readers.base import BaseDiskReader, BaseReader
from loguru import logger

from harness.data.errors import DataError
from harness.data.preparation.inputs import Inputs
from harness.run.files import write_atomic

SPLIT_CHARS = 100_000
"""Text files longer than this become several documents, cut at the next blank line."""
MAX_CHARS = 1_000_000
"""Where no blank line comes, they are cut here."""


def make_reader(inputs: Inputs, scratch: Path, keys: Sequence[str] | None = None, max_bad_lines: int = 0) -> BaseReader:
    """The reader for `inputs`. `scratch` takes its list of files, and of the broken lines that it let pass: at most
    `max_bad_lines` in each file. `keys`: join the texts of several keys."""
    keys = keys or [inputs.text_key]
    adapter = partial(_row, tuple(keys))
    if inputs.format == "dataset":
        options = {"split": inputs.split} if inputs.split else None
        return HuggingFaceDatasetReader(inputs.path, options, adapter=adapter, load_from_disk=inputs.split is None)
    scratch.mkdir(parents=True, exist_ok=True)
    paths = scratch / "inputs.list"
    if not paths.exists():  # tasks share it, and none may see half of it
        write_atomic(paths, "".join(f"{name}\n" for name in inputs.files))
    root = str(inputs.root)
    if inputs.format == "parquet":
        return ParquetReader(root, str(paths), adapter=adapter, text_key=keys[0], read_metadata=len(keys) > 1)
    if inputs.format == "jsonl":
        return JsonLinesReader(root, str(paths), keys, max_bad_lines, scratch / "bad_lines")
    return TextReader(root, str(paths))


def read_documents(inputs: Inputs, scratch: Path, keys: Sequence[str] | None = None) -> Iterator[str]:
    """The texts of all documents, here and now, without datatrove's messages."""
    logger.disable("datatrove")
    try:
        for document in make_reader(inputs, scratch, keys).run(None, 0, 1):
            yield document.text
    finally:
        logger.enable("datatrove")


def _row(
    keys: Sequence[str], reader: BaseReader, data: dict[str, Any], path: str, id_in_file: int | str
) -> dict[str, Any]:
    """Adapter for rows of Parquet and `datasets`."""
    text = _text_of(data, keys, f"{path} row {id_in_file}")
    return {"text": text, "id": f"{path}/{id_in_file}", "metadata": {"size": 1}}


def _text_of(data: Any, keys: Sequence[str], where: str) -> str:
    """The document's text; "" (which is skipped) for null."""
    return "\n".join(text for key in keys if (text := _text_at(data, key, where)))


def _text_at(data: Any, key: str, where: str) -> str:
    if not isinstance(data, dict) or key not in data:
        found = ", ".join(map(str, data)) if isinstance(data, dict) else f"none, it is a {type(data).__name__}"
        raise DataError(f"{where}: no key {key!r}; its keys: {found}. Pass --text-key.")
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
    """A line is a document: a JSON object with its text under `keys`. Files may be gzipped.

    A line that is no JSON stops the reading, unless it is one of the first `max_bad_lines` of its file: then it is written
    down in `bad_lines`/DIGEST_OF_PATH.txt, and counted.
    """

    name = "JSON lines"

    def __init__(self, root: str, paths: str, keys: Sequence[str], max_bad_lines: int, bad_lines: Path) -> None:
        super().__init__(root, paths)
        self.keys = tuple(keys)
        self.max_bad_lines = max_bad_lines
        self.bad_lines = bad_lines

    def read_file(self, filepath: str) -> Iterator[Document]:
        """Documents of one file."""
        path, bad = self.data_folder.resolve_paths(filepath), 0
        with self.data_folder.open(filepath, "rb", compression="infer") as file:
            try:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        row = orjson.loads(line)
                    except orjson.JSONDecodeError as error:
                        bad += 1
                        self._let_pass(path, number, bad, str(error))
                        continue
                    if text := _text_of(row, self.keys, f"{path} line {number}"):
                        yield Document(text, f"{filepath}/{number}", metadata={"size": len(line)})
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise DataError(f"{path}: the gzip file is damaged or cut off: {error}") from None

    def _let_pass(self, path: str, number: int, bad: int, error: str) -> None:
        if bad > self.max_bad_lines:
            earlier = (
                f", broken line number {bad} of this file: more than --max-bad-lines {self.max_bad_lines}"
                if bad > 1
                else ""
            )
            raise DataError(
                f"{path} line {number}: not JSON: {error}{earlier}. Mend it, or allow some with --max-bad-lines."
            )
        self.stat_update("bad_lines")
        self.bad_lines.mkdir(parents=True, exist_ok=True)
        file = self.bad_lines / f"{hashlib.blake2b(path.encode(), digest_size=8).hexdigest()}.txt"
        with file.open("w" if bad == 1 else "a", encoding="utf-8") as out:
            out.write(f"{path} line {number}: {error}\n")
