from pathlib import Path

import pytest

from harness.data.__main__ import main
from harness.data.checksums import sums_path, verify_file
from tests.data.conftest import write_token_file


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write_token_file(tmp_path / "data" / f"part{number}", [[1, 2, 3]] * 3000) for number in range(3)]


def test_writes_what_is_missing(tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["checksum", str(files[1])]) == 0
    before = sums_path(files[1]).stat().st_mtime_ns
    assert main(["checksum", f"{tmp_path}/data"]) == 0
    assert "checksums written for 2 token file(s), 1 had theirs" in capsys.readouterr().out
    assert sums_path(files[1]).stat().st_mtime_ns == before
    assert [verify_file(file) for file in files] == [None] * 3
    data = bytearray(files[0].read_bytes())
    data[5000] ^= 1
    files[0].write_bytes(data)
    assert "is damaged" in str(verify_file(files[0]))


def test_never_replaces_those_of_another_file(
    tmp_path: Path, files: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["checksum", f"{tmp_path}/data"]) == 0
    files[0].write_bytes(files[0].read_bytes()[:-10])
    assert main(["checksum", f"{tmp_path}/data"]) == 2
    assert "has 17990 bytes, and 18000 when its checksums were made" in capsys.readouterr().err


def test_links_to_folders_are_followed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linked = write_token_file(tmp_path / "elsewhere", [[1, 2]])
    write_token_file(tmp_path / "data", [[1, 2]])
    write_token_file(tmp_path / "data" / ".old", [[1, 2]])
    (tmp_path / "data" / "more").symlink_to(linked.parent)
    assert main(["checksum", f"{tmp_path}/data"]) == 0
    assert "for 2 token file(s); passed over 1 file (hidden 1)" in capsys.readouterr().out
    assert sums_path(linked).exists()


@pytest.mark.parametrize("name", ["nowhere", "data", "file.txt"])
def test_nothing_to_do(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "file.txt").touch()
    assert main(["checksum", f"{tmp_path}/{name}"]) == 2
    assert f"{tmp_path}/{name}: no token file there" in capsys.readouterr().err
