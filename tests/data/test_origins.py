"""Folders on a file system and in an object store, seen alike."""

import builtins
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import pytest

from harness.data.errors import DataError
from harness.data.origins import OriginFile, _modified_ns, is_url, join, list_folder, manifest_sums, open_at, split


@pytest.fixture
def bucket() -> Iterator[str]:
    """A folder in fsspec's store in memory."""
    store = fsspec.filesystem("memory")
    store.pipe({"/bucket/web/a.ds": b"0123456789", "/bucket/web/sub/b.ds": b"x"})
    yield "memory://bucket/web"
    store.rm("/bucket", recursive=True)


def test_paths_and_urls() -> None:
    assert is_url("s3://bucket/web") and not is_url("/data/web") and not is_url("")
    assert join("s3://bucket/web/", "a.ds") == "s3://bucket/web/a.ds"
    assert split("s3://bucket/web/a.ds") == ("s3://bucket/web", "a.ds")
    assert split("s3://bucket/web/") == ("s3://bucket/web", None)


def test_a_folder_whose_name_ends_like_a_token_file(tmp_path: Path) -> None:
    (tmp_path / "odd.ds").mkdir()
    assert split(str(tmp_path / "odd.ds")) == (str(tmp_path / "odd.ds"), None)
    assert split(str(tmp_path / "file.ds")) == (str(tmp_path), "file.ds")


def test_listing_and_reading(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "a.ds").write_bytes(b"0123456789")
    (tmp_path / "sub").mkdir()
    for folder in (bucket, str(tmp_path)):
        found = list_folder(folder, "key")
        assert list(found) == ["a.ds"] and found["a.ds"].size == 10
        with open_at(join(folder, "a.ds"), 4) as file:
            assert file.read() == b"456789"


def test_what_can_not_be_listed_names_the_key(tmp_path: Path) -> None:
    for folder in (str(tmp_path / "none"), "memory://none"):
        with pytest.raises(DataError, match=r"data\.sources\.web cannot be read: "):
            list_folder(folder, "data.sources.web")


def test_a_store_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_gcsfs(name: str, *rest: Any) -> Any:
        if name.startswith("gcsfs"):
            raise ImportError("planted")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gcsfs)
    with pytest.raises(DataError, match=r"data\.sources\.web: Please install gcsfs"):
        list_folder("gs://bucket/web", "data.sources.web")


def test_times_as_stores_tell_them() -> None:
    assert _modified_ns({"LastModified": datetime(2026, 1, 1, tzinfo=UTC)}) == 1767225600 * 10**9
    assert _modified_ns({"mtime": 1.5}) == 1_500_000_000
    assert _modified_ns({"mtime": "yesterday"}) is None and _modified_ns({}) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"files": [1]}', '{"tokens": 1}'])
def test_a_manifest_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert manifest_sums(str(tmp_path), list_folder(str(tmp_path), "key")) == {}


def test_manifest_sums(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"files": [{"name": "a.ds", "sha256": "12"}, {"name": "b.ds"}]}')
    assert manifest_sums(str(tmp_path), {"manifest.json": OriginFile("manifest.json", 1, None)}) == {"a.ds": "12"}
    assert manifest_sums(str(tmp_path), {}) == {}
