import os
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.data import checksums
from harness.data.checksums import BLOCK_BYTES, Checksums, ChecksumWriter, sums_path, verify_file, write_checksums
from harness.data.errors import DataError

SIZES = [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, 5 * BLOCK_BYTES + 7]


def random_file(folder: Path, size: int) -> Path:
    path = folder / "shard.ds"
    path.write_bytes(np.random.default_rng(size).bytes(size))
    return path


def opened(path: Path) -> Checksums:
    sums = Checksums.open(path)
    assert sums is not None
    return sums


@pytest.mark.parametrize("size", SIZES)
def test_a_sound_file_is_sound_and_any_flipped_bit_is_found(tmp_path: Path, size: int) -> None:
    path = random_file(tmp_path, size)
    done: list[int] = []
    assert write_checksums(path, done.append) == sums_path(path)
    assert sum(done) == size
    assert verify_file(path) is None
    original = path.read_bytes()
    for at in {0, size // 2, size - 1} if size else set():
        path.write_bytes(original[:at] + bytes([original[at] ^ 4]) + original[at + 1 :])
        assert f"block {at // BLOCK_BYTES} at offset {at // BLOCK_BYTES * BLOCK_BYTES}" in str(verify_file(path))


@given(
    size=st.integers(1, 6 * BLOCK_BYTES),
    begin=st.floats(0, 1, exclude_max=True),
    length=st.floats(0, 1),
    bad=st.floats(0, 1, exclude_max=True),
)
def test_a_stretch_is_checked_by_its_own_blocks(
    tmp_path_factory: pytest.TempPathFactory, size: int, begin: float, length: float, bad: float
) -> None:
    path = random_file(tmp_path_factory.mktemp("stretch"), size)
    write_checksums(path)
    offset = int(begin * size)
    wanted = max(1, int(length * (size - offset)))
    sums = opened(path)
    first, last = sums.cover(offset, wanted)
    assert first <= offset and last >= offset + wanted and last <= size
    assert offset - first < BLOCK_BYTES and last - (offset + wanted) < BLOCK_BYTES
    data = bytearray(path.read_bytes()[first:last])
    assert sums.verify(first, data) is None
    at = int(bad * len(data))
    data[at] ^= 1
    mismatch = sums.verify(first, data)
    assert mismatch is not None and mismatch.offset <= first + at < mismatch.offset + BLOCK_BYTES
    assert mismatch.block * BLOCK_BYTES == mismatch.offset and mismatch.found != mismatch.expected
    sums.close()


@given(cuts=st.lists(st.integers(0, 3 * BLOCK_BYTES), max_size=8))
def test_written_in_pieces_is_the_same(tmp_path_factory: pytest.TempPathFactory, cuts: list[int]) -> None:
    path = random_file(tmp_path_factory.mktemp("pieces"), 3 * BLOCK_BYTES)
    data = path.read_bytes()
    writer = ChecksumWriter()
    edges = [0, *sorted(cuts), len(data)]
    for begin, end in pairwise(edges):
        writer.update(memoryview(data)[begin:end])
    written = writer.write(path).read_bytes()
    assert written == write_checksums(path).read_bytes()


def test_the_format_stays_readable(tmp_path: Path) -> None:
    """A file written by the first version, byte by byte."""
    path = tmp_path / "shard.ds"
    path.write_bytes(b"abc")
    write_checksums(path)
    assert sums_path(path).read_bytes().hex() == (
        "4841524e53554d53010001000010000003000000000000004d5fbb88a911654c000000000000000050392f89"
    )


def test_a_file_without_checksums_is_read_unchecked(tmp_path: Path) -> None:
    path = random_file(tmp_path, 10)
    assert Checksums.open(path) is None and verify_file(path) is None


def test_a_changed_size_is_named(tmp_path: Path) -> None:
    path = random_file(tmp_path, 100)
    write_checksums(path)
    os.truncate(path, 90)
    assert verify_file(path) == f"{path} has 90 bytes, and 100 when its checksums were made"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"", "no file of checksums, or cut off"),
        (lambda data: b"X" + data[1:], "no file of checksums"),
        (lambda data: data[:-1], "bytes where 48 would be right: it is cut off"),
        (lambda data: data[:8] + b"\x02" + data[9:], "version 2"),
        (lambda data: data[:12] + bytes(4) + data[16:], "blocks of 0 bytes"),
    ],
)
def test_damaged_checksums_name_themselves(tmp_path: Path, damage, message: str) -> None:
    path = random_file(tmp_path, 2 * BLOCK_BYTES)
    sums_path(path).write_bytes(damage(write_checksums(path).read_bytes()))
    with pytest.raises(DataError) as raised:
        Checksums.open(path)
    assert message in str(raised.value) and str(sums_path(path)) in str(raised.value)
    assert verify_file(path) == str(raised.value)


def test_a_damaged_table_is_told_from_a_damaged_file(tmp_path: Path) -> None:
    path = random_file(tmp_path, 2 * BLOCK_BYTES)
    data = bytearray(write_checksums(path).read_bytes())
    data[-1] ^= 1
    sums_path(path).write_bytes(data)
    sums = opened(path)
    assert sums.damaged()
    sums.close()
    assert f"{sums_path(path)} is damaged" in str(verify_file(path))


def test_a_kill_while_writing_leaves_the_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = random_file(tmp_path, 100)
    before = write_checksums(path).read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksums.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_checksums(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["shard.ds", "shard.ds.sums"]
    assert sums_path(path).read_bytes() == before
