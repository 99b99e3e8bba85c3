"""The rows of one file of documents: each is a document, or something that is no document and why."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any

import orjson

from harness.data.documents.compressed import open_documents, reading, split_compression
from harness.data.documents.passed_over import printable
from harness.data.errors import DataError

BOM = b"\xef\xbb\xbf"
"""What Windows programs put before UTF-8; in files that were joined also in the middle."""
UTF16 = (b"\xff\xfe", b"\xfe\xff")
PARQUET_BATCH = 1000


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    where: str
    """`line 3`, `row 3`, ...; empty: the whole file."""
    size: int
    """Its share of the input: bytes, or 1 where rows are counted."""
    text: str = ""
    """Empty: there is none in it (`problem` is empty too)."""
    problem: str = ""
    """Why it is no document."""


def read_rows(path: str, format: str, keys: Sequence[str]) -> Iterator[Row]:
    """All rows of a file of `format`, with the texts under `keys` joined by newlines; text files have one row.

    Raises DataError or OSError, which name the file, where it cannot be read to its end.
    """
    if format == "text":
        yield _text(path)
    elif format == "parquet":
        yield from _parquet(path, keys)
    elif split_compression(path)[0].endswith(".json"):
        yield from _json(path, keys)
    else:
        with open_documents(path) as file:
            yield from _json_lines(path, file, keys)


def row_of(content: Any, keys: Sequence[str], where: str, size: int) -> Row:
    """The row that an object, or whatever else stands in its place, makes."""
    try:
        return Row(where, size, "\n".join(text for key in keys if (text := _text_at(content, key))))
    except ValueError as error:
        return Row(where, size, problem=str(error))


def _text_at(content: Any, key: str) -> str:
    """Raises ValueError."""
    if not isinstance(content, dict) or key not in content:
        found = ", ".join(map(str, content)) if isinstance(content, dict) else f"none, it is a {type(content).__name__}"
        raise ValueError(f"no key {key!r}; its keys: {found}. Pass --text-key.")
    text = content[key]
    if text is None:
        return ""
    if not isinstance(text, str):
        raise ValueError(f"{key!r} holds a {type(text).__name__}, not text. Pass --text-key.")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{key!r} holds half of a surrogate pair, which is not valid text") from None
    return text


def _text(path: str) -> Row:
    """The whole file, without white space at its ends; line ends become newlines."""
    with open_documents(path) as file:
        content = file.read()
    try:
        text = content.removeprefix(BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{printable(path)}: not UTF-8 text ({_encoding(content) or error.reason}). {_CONVERT}"
        ) from None
    return Row("", len(content), text.replace("\r\n", "\n").replace("\r", "\n").strip())


_CONVERT = "Convert it, or leave it out."


def _encoding(content: bytes) -> str:
    return "it begins with the byte order mark of UTF-16" if content.startswith(UTF16) else ""


def _json_lines(path: str, file: IO[bytes], keys: Sequence[str], first: bytes = b"", number: int = 0) -> Iterator[Row]:
    """A row for each line that is not blank. `first`: line `number`, which was read before."""
    if first:
        yield _json_line(path, first, keys, number)
    for at, line in enumerate(file, start=number + 1):
        if line.strip():
            yield _json_line(path, line, keys, at)


def _json_line(path: str, line: bytes, keys: Sequence[str], number: int) -> Row:
    if number == 1 and (encoding := _encoding(line)):
        raise DataError(f"{printable(path)}: not UTF-8 ({encoding}). {_CONVERT}")
    where = f"line {number}"
    try:
        content = _parse(line)
    except ValueError as error:
        return Row(where, len(line), problem=f"not JSON: {error}")
    return row_of(content, keys, where, len(line))


def _json(path: str, keys: Sequence[str]) -> Iterator[Row]:
    """A `.json` file: an object a line, or one array of objects, or one object. Raises DataError for anything else."""
    with open_documents(path) as file:
        lines = ((number, line) for number, line in enumerate(file, start=1) if line.removeprefix(BOM).strip())
        number, first = next(lines, (0, b""))
        if not first or _is_a_row(first):
            yield from _json_lines(path, file, keys, first, number)
            return
        content = first + file.read()
    try:
        found = _parse(content)
    except ValueError as error:
        raise DataError(
            f"{printable(path)}: not JSON, neither as a whole nor as an object a line: {error}. Mend it, or leave it out."
        ) from None
    rows = found if isinstance(found, list) else [found]
    for number, row in enumerate(rows, start=1):
        yield row_of(row, keys, f"element {number}", len(content) // len(rows))


def _is_a_row(line: bytes) -> bool:
    """Whether the first line is a whole object: then each line has one."""
    try:
        return isinstance(_parse(line), dict)
    except ValueError:
        return False


def _parse(content: bytes) -> Any:
    """JSON, with NaN and Infinity, which Python writes, let be. Raises ValueError."""
    content = content.removeprefix(BOM)
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        try:
            return json.loads(content.decode("utf-8"))
        except (ValueError, RecursionError):
            raise ValueError(str(error)) from None


def _parquet(path: str, keys: Sequence[str]) -> Iterator[Row]:
    import pyarrow.parquet as pq

    with (
        reading(path, "the Parquet file"),
        open(path, "rb") as file,
        pq.ParquetFile(file, page_checksum_verification=True) as parquet,
    ):
        columns = parquet.schema_arrow.names
        if missing := [key for key in keys if key not in columns]:
            raise DataError(
                f"{printable(path)}: no column {missing[0]!r}; there are {', '.join(columns)}. Pass --text-key."
            )
        number = 0
        for batch in parquet.iter_batches(batch_size=PARQUET_BATCH, columns=list(keys)):
            for content in _contents(batch):
                yield _parquet_row(content, keys, f"row {number}")
                number += 1


def _parquet_row(content: dict[str, Any] | UnicodeDecodeError, keys: Sequence[str], where: str) -> Row:
    if isinstance(content, UnicodeDecodeError):
        return Row(where, 1, problem=f"not UTF-8 text ({content.reason})")
    return row_of(content, keys, where, 1)


def _contents(batch: Any) -> list[Any]:
    """Each row as a dict, or as the error that its text is not UTF-8, which Parquet does not rule out."""
    try:
        rows: list[Any] = batch.to_pylist()
    except UnicodeDecodeError:
        rows = []
        for at in range(batch.num_rows):
            try:
                rows += batch.slice(at, 1).to_pylist()
            except UnicodeDecodeError as error:
                rows.append(error)
    return rows
