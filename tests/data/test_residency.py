"""What is local. The stubs of `lfs` and `weka` on PATH print what the real ones do."""

import os
from pathlib import Path

import pytest

from harness.data import residency as module
from harness.data.residency import FileResidency, recall, residency, token_files, total


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """One that is all there, one released, one half there."""
    folder = tmp_path / "fs" / "web"
    folder.mkdir(parents=True)
    size = 1 << 20
    for name in ("here.ds", "half.ds", "released.ds"):
        (folder / name).write_bytes(b"")
        os.truncate(folder / name, size)
    (folder / "here.ds").write_bytes(os.urandom(size))
    with open(folder / "half.ds", "r+b") as file:
        file.write(os.urandom(size // 2))
    os.sync()
    return [folder / "here.ds", folder / "half.ds", folder / "released.ds"]


def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    (tools / name).write_text(f"#!/bin/sh\n{script}\n")
    (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")


def mounted(tmp_path: Path, kind: str) -> Path:
    """A table of mounts in which the files lie on a file system of this type."""
    table = tmp_path / "mounts"
    table.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/x {tmp_path}/fs {kind} rw 0 0\nother {tmp_path}/f ext4 rw 0 0\n")
    return table


def shares(found: list[FileResidency]) -> list[float]:
    return [file.resident / file.size for file in found]


def test_allocated_blocks(files: list[Path]) -> None:
    assert shares(residency(files)) == [1.0, pytest.approx(0.5, abs=0.05), 0.0]
    size, resident = total(residency(files))
    assert size == 3 << 20 and resident / size == pytest.approx(0.5, abs=0.02)


def test_lustre_says_what_is_released(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """[ "$1" = hsm_state ] || exit 2; shift
for f; do case $f in *here.ds) echo "$f: (0x0000000d) released exists archived, archive_id:1";; *) echo "$f: (0x00000000)";; esac; done"""
    stub(tmp_path, monkeypatch, "lfs", script)
    assert shares(residency(files, mounted(tmp_path, "lustre")))[0] == 0.0
    assert shares(residency(files, mounted(tmp_path, "ext4")))[0] == 1.0  # not a Lustre: not asked


def test_weka_says_how_much_is_on_ssd(files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = """[ "$1 $2 $3" = "fs tier location" ] || exit 2; shift 3
echo "PATH   FILE TYPE  FILE SIZE  CAPACITY IN SSD (WRITE-CACHE)  CAPACITY IN SSD (READ-CACHE)  CAPACITY IN OBJECT STORAGE  CAPACITY IN REMOTE STORAGE"
for f; do echo "$f  regular    1.05 MB    262.14 kB                      262.14 kB                     1.05 MB                     0 B"; done"""
    stub(tmp_path, monkeypatch, "weka", script)
    assert shares(residency(files, mounted(tmp_path, "wekafs"))) == [pytest.approx(0.5, abs=0.01)] * 3


@pytest.mark.parametrize("script", ["exit 1", "echo nonsense", "sleep 60"])
def test_a_command_that_fails_hangs_or_talks_nonsense_leaves_the_blocks(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(module, "COMMAND_SECONDS", 0.3)
    for name, kind in (("lfs", "lustre"), ("weka", "wekafs")):
        stub(tmp_path, monkeypatch, name, script)
        assert shares(residency(files, mounted(tmp_path, kind)))[0] == 1.0


def test_recalling_asks_the_tier_and_reads_everything(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(tmp_path, monkeypatch, "lfs", f'echo "$@" >> {tmp_path}/asked')
    told: list[int] = []
    recall(residency(files)[2], told.append, mounted(tmp_path, "lustre"))
    assert (tmp_path / "asked").read_text() == f"hsm_restore {files[2]}\n"
    assert sum(told) == 1 << 20


def test_token_files_of_a_folder_and_of_a_file(files: list[Path]) -> None:
    (files[0].parent / "here.ds.index").touch()
    assert token_files(files[0].parent) == sorted(files)
    assert token_files(files[0]) == [files[0]]
