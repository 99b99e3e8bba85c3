import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness.data.documents.rows import Row, read_rows
from harness.data.errors import DataError


def rows(path: Path, content: bytes | str, format: str = "jsonl") -> list[Row]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_rows(str(path), format, ["text"]))


def texts(path: Path, content: bytes | str, format: str = "jsonl") -> list[str]:
    found = rows(path, content, format)
    assert not [row.problem for row in found if row.problem]
    return [row.text for row in found]


@pytest.mark.parametrize(
    "content",
    [
        '{"text": "one"}\n{"text": "two"}\n',
        '\n \n{"text": "one"}\r\n\r\n{"text": "two"}',
        '[{"text": "one"}, {"text": "two"}]',
        '[{"text": "one"},\n {"text": "two"}]\n',
        '[\n  {\n    "text": "one"\n  },\n  {"text": "two"}\n]',
        '\ufeff[{"text": "one"}, {"text": "two"}]',
        '\ufeff{"text": "one"}\n\ufeff{"text": "two"}\n',
    ],
)
def test_json_files_hold_lines_or_an_array(tmp_path: Path, content: str) -> None:
    assert texts(tmp_path / "a.json", content) == ["one", "two"]


def test_json_files_hold_one_object(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.json", json.dumps({"text": "one", "more": [1]}, indent=2)) == ["one"]
    assert texts(tmp_path / "a.json", "[]") == texts(tmp_path / "a.json", "\n") == []


@pytest.mark.parametrize(
    "content",
    ['[{"text": "one"},\n{"text": "two"', '{\n"text": "one"\n}\n{\n"text": "two"\n}', '["a"]\n["b"]', "nothing"],
)
def test_json_files_that_are_neither(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=rf"^{tmp_path}/a\.json: not JSON, neither as a whole nor as an object a line"):
        rows(tmp_path / "a.json", content)


def test_elements_that_are_no_documents(tmp_path: Path) -> None:
    found = rows(tmp_path / "a.json", '[{"text": "one"}, "two", {"body": "three"}]')
    assert [row.problem for row in found] == [
        "",
        "no key 'text'; its keys: none, it is a str. Pass --text-key.",
        "no key 'text'; its keys: body. Pass --text-key.",
    ]
    assert [row.where for row in found] == ["element 1", "element 2", "element 3"]


def test_json_that_python_writes(tmp_path: Path) -> None:
    content = (
        '{"text": "one", "score": NaN}\n{"text": "two", "score": -Infinity}\n{"text": "\\u00e9\\u0000", "n": 1e999}\n'
    )
    assert texts(tmp_path / "a.jsonl", content) == ["one", "two", "é\0"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"text": "cut', "not JSON: "),
        ("{'text': 'one'}", "not JSON: "),
        ('{"text": "one"} {"text": "two"}', "not JSON: "),
        ('{"text": NaN}', "'text' holds a float, not text"),
        ('{"text": "half \\ud83d"}', "'text' holds half of a surrogate pair"),
        ("[1, 2]", "no key 'text'; its keys: none, it is a list"),
        ("3", "no key 'text'; its keys: none, it is a int"),
        ("[" * 100_000, "not JSON: "),
        ('{"text": "x", "n": ' + "9" * 5000 + "x}", "not JSON: "),
    ],
)
def test_lines_that_are_no_documents(tmp_path: Path, line: str, problem: str) -> None:
    first, bad, last = rows(tmp_path / "a.jsonl", f'{{"text": "one"}}\n{line}\n{{"text": "two"}}\n')
    assert (first.text, last.text) == ("one", "two")
    assert bad.problem.startswith(problem) and bad.where == "line 2"


def test_null_and_empty_are_no_text(tmp_path: Path) -> None:
    assert texts(tmp_path / "a.jsonl", '{"text": null}\n{"text": ""}\n{"text": " "}\n') == ["", "", " "]


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    long = "a paragraph\n\n" * 100_000
    assert texts(tmp_path / "a.txt", long, "text") == [long.strip()]
    assert texts(tmp_path / "a.txt", "\ufeff \r\none\r\ntwo\rthree\n\n", "text") == ["one\ntwo\nthree"]


@pytest.mark.parametrize(("format", "name"), [("text", "a.txt"), ("jsonl", "a.jsonl")])
def test_utf16_is_refused(tmp_path: Path, format: str, name: str) -> None:
    content = '{"text": "one"}\n'.encode("utf-16")
    with pytest.raises(DataError, match=r"not UTF-8.*byte order mark of UTF-16\). Convert it, or leave it out"):
        rows(tmp_path / name, content, format)


def test_parquet_rows(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\2\0\0\0\4\0\0\0\6\0\0\0"), pa.py_buffer(b"ab\xff\xfecd")]
    )
    pq.write_table(pa.table({"text": broken, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    first, bad, last = read_rows(str(tmp_path / "a.parquet"), "parquet", ["text"])
    assert (first.text, last.text) == ("ab", "cd")
    assert (bad.where, bad.problem) == ("row 1", "not UTF-8 text (invalid start byte)")


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
def test_kinds_of_text_in_parquet(tmp_path: Path, kind: pa.DataType) -> None:
    column = pa.array(["one", None, "two"], pa.string()).cast(kind)
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert [row.text for row in read_rows(str(tmp_path / "a.parquet"), "parquet", ["text"])] == ["one", "", "two"]


def test_columns_that_hold_no_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": [b"one"], "n": [1]}), tmp_path / "a.parquet")
    [row] = read_rows(str(tmp_path / "a.parquet"), "parquet", ["text"])
    assert row.problem == "'text' holds a bytes, not text. Pass --text-key."
    with pytest.raises(DataError, match=r"a\.parquet: no column 'body'; there are text, n\. Pass --text-key\."):
        list(read_rows(str(tmp_path / "a.parquet"), "parquet", ["body"]))


def test_damaged_parquet_names_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(
        pa.table({"text": [f"{n:x}" * 30 for n in range(4000)]}), file, row_group_size=500, write_page_checksum=True
    )
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DataError, match=rf"^{file}: the Parquet file is damaged or truncated"):
        list(read_rows(str(file), "parquet", ["text"]))
