import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from harness.data.documents.compressed import open_documents, split_compression
from harness.data.errors import DataError


def zstd(data: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as out:
        out.write(data)
    compressed: bytes = sink.getvalue().to_pybytes()
    return compressed


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstd,
    ".zstd": zstd,
}
ALL = pytest.mark.parametrize("suffix", COMPRESS)
TEXT = b"".join(b"line %d\n" % number for number in range(20_000)) + os.urandom(100_000)


def read(path: Path, content: bytes) -> bytes:
    path.write_bytes(content)
    with open_documents(str(path)) as file:
        return file.read()


@ALL
def test_streams_one_after_the_other(tmp_path: Path, suffix: str) -> None:
    one, two = COMPRESS[suffix](TEXT), COMPRESS[suffix](b"more")
    assert read(tmp_path / f"a{suffix}", one) == TEXT
    assert read(tmp_path / f"a{suffix}", two + one + two) == b"more" + TEXT + b"more"
    assert read(tmp_path / f"a{suffix}", b"") == b""


@ALL
@pytest.mark.parametrize("damage", ["cut", "none of it", "second cut", "second broken"])
def test_damage_names_the_file(tmp_path: Path, suffix: str, damage: str) -> None:
    whole, path = COMPRESS[suffix](TEXT), tmp_path / f"a.txt{suffix}"
    content = {
        "cut": whole[: len(whole) // 2],
        "none of it": TEXT,
        "second cut": whole + whole[:100],
        "second broken": whole + b"broken" + whole,
    }[damage]
    with pytest.raises(
        DataError, match=rf"^{path}: the \w+ file is damaged or truncated: .*Copy it again, or leave it out"
    ):
        read(path, content)


def test_errors_of_the_file_system_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError) as error, open_documents(str(tmp_path)):
        pass
    assert error.value.filename == str(tmp_path)


def test_names() -> None:
    assert split_compression("A.JSONL.GZ") == ("a.jsonl", ".gz")
    assert split_compression("a.jsonl") == ("a.jsonl", "")
