"""One file: complete and verified or not there at all."""

import dataclasses
import os
import threading
import time
from pathlib import Path
from typing import BinaryIO

import pytest

from harness.data.stage_copy import (
    CHUNK_BYTES,
    Busy,
    Copier,
    Damaged,
    NoRoom,
    Original,
    RateLimit,
    Room,
    Stopped,
    _locked,
    _part_path,
    default_keep_free,
    is_staged,
)
from harness.data.stage_plan import StageFile, plan_files
from tests.data.staging import staging_config, write_manifest, write_source


class Reads:
    """An original that counts what is read of it and can go wrong."""

    name = "the original"

    def __init__(self, fail_at: int | None = None, damage: bool = False) -> None:
        self.offsets: list[int] = []
        self.fail_at, self.damage = fail_at, damage

    def open(self, file: StageFile, offset: int) -> BinaryIO:
        self.offsets.append(offset)
        source = Original().open(file, offset)
        if self.damage:
            return open("/dev/zero", "rb")
        if self.fail_at is not None:
            return _Failing(source, self.fail_at - offset)  # type: ignore[return-value]
        return source


class _Failing:
    def __init__(self, source: BinaryIO, left: int) -> None:
        self.source, self.left = source, left

    def read(self, size: int) -> bytes:
        if self.left <= 0:
            raise OSError(5, "planted")
        data = self.source.read(min(size, self.left))
        self.left -= len(data)
        return data

    def close(self) -> None:
        self.source.close()


@pytest.fixture
def file(tmp_path: Path) -> StageFile:
    web = write_source(tmp_path / "web", 1, manifest=False)
    (web / "000.ds").write_bytes(os.urandom(2 * CHUNK_BYTES + 1000))
    write_manifest(web)
    files = plan_files(staging_config({"web": web}, tmp_path / "scratch"), tmp_path / "scratch")
    return next(file for file in files if file.name == "000.ds")


def copier(file: StageFile, rate: float | None = None, told: list[int] | None = None) -> Copier:
    stop = threading.Event()
    return Copier(Room(file.copy.parent, 0), RateLimit(rate, stop), stop, (told if told is not None else []).append)


def original_bytes(file: StageFile) -> bytes:
    return Path(file.origin).read_bytes()


def test_a_copy_has_the_bytes_and_the_time_of_the_original(file: StageFile) -> None:
    told: list[int] = []
    assert copier(file, told=told).copy(file, [Original()]) == "the original"
    assert file.copy.read_bytes() == original_bytes(file)
    assert file.copy.stat().st_mtime_ns == Path(file.origin).stat().st_mtime_ns
    assert [path.name for path in file.copy.parent.iterdir()] == ["000.ds"]
    assert sum(told) == file.size
    assert copier(file).copy(file, [Reads(damage=True)]) is None  # there already: nothing is read


@pytest.mark.parametrize("checksum", [True, False])
def test_goes_on_where_it_was_interrupted(file: StageFile, checksum: bool) -> None:
    file = file if checksum else dataclasses.replace(file, sha256=None)
    with pytest.raises(OSError, match="planted"):
        copier(file).copy(file, [Reads(fail_at=CHUNK_BYTES + 17)])
    assert not file.copy.exists()
    rest = Reads()
    copier(file).copy(file, [rest])
    assert rest.offsets == [CHUNK_BYTES + 17]
    assert file.copy.read_bytes() == original_bytes(file)


def test_a_part_with_other_bytes_is_thrown_away(file: StageFile) -> None:
    file.copy.parent.mkdir(parents=True)
    _part_path(file).write_bytes(bytes(1000))
    reads = Reads()
    copier(file).copy(file, [reads])
    assert reads.offsets == [1000, 0]
    assert file.copy.read_bytes() == original_bytes(file)


def test_a_part_that_is_too_long_is_begun_again(file: StageFile) -> None:
    file = dataclasses.replace(file, sha256=None)
    file.copy.parent.mkdir(parents=True)
    _part_path(file).write_bytes(bytes(file.size + 1))
    copier(file).copy(file, [Original()])
    assert file.copy.read_bytes() == original_bytes(file)


def test_a_damaged_original_leaves_nothing(file: StageFile) -> None:
    with pytest.raises(Damaged, match=r"000\.ds \(read from the original\) does not have the sha256"):
        copier(file).copy(file, [Reads(damage=True)])
    assert list(file.copy.parent.iterdir()) == []


def test_a_damaged_peer_is_made_good_by_the_original(file: StageFile) -> None:
    peer = Reads(damage=True)
    peer.name = "another node"
    assert copier(file).copy(file, [peer, Original()]) == "the original"
    assert file.copy.read_bytes() == original_bytes(file)


def test_a_peer_that_dies_half_way_is_gone_on_from(file: StageFile) -> None:
    peer, original = Reads(fail_at=1_000_000), Reads()
    peer.name = "another node"
    assert copier(file).copy(file, [peer, original]) == "the original"
    assert (peer.offsets, original.offsets) == ([0], [1_000_000])
    assert file.copy.read_bytes() == original_bytes(file)


def test_a_changed_original_replaces_its_copy_and_older_parts_go(file: StageFile) -> None:
    copier(file).copy(file, [Original()])
    other = file.copy.with_name(".000.ds.0123456789ab.part")
    other.write_bytes(b"old")
    mine = file.copy.with_name(".000.ds.notes.part")
    mine.write_bytes(b"somebody's own")
    new = dataclasses.replace(file, size=file.size - 8, modified_ns=time.time_ns(), sha256=None)
    os.truncate(file.origin, new.size)
    assert not is_staged(new)
    copier(new).copy(new, [Original()])
    assert file.copy.read_bytes() == original_bytes(file)
    assert not other.exists() and mine.exists()


def test_who_comes_second_is_told_so_and_then_copies(file: StageFile) -> None:
    file.copy.parent.mkdir(parents=True)
    with _locked(_part_path(file)) as fd, pytest.raises(Busy) as busy:
        os.write(fd, original_bytes(file)[:1000])
        copier(file).copy(file, [Original()])
    assert busy.value.size == 1000
    assert copier(file).copy(file, [Original()]) == "the original"


def test_nothing_is_begun_that_does_not_fit(file: StageFile) -> None:
    full = dataclasses.replace(copier(file), room=Room(file.copy.parent, 1 << 60))
    reads = Reads()
    with pytest.raises(NoRoom):
        full.copy(file, [reads])
    assert reads.offsets == [] and list(file.copy.parent.iterdir()) == []


def test_a_disk_that_somebody_else_fills_meanwhile(file: StageFile, monkeypatch: pytest.MonkeyPatch) -> None:
    here = copier(file)
    asked = iter([False, True])

    def check() -> None:
        if next(asked):
            raise NoRoom

    monkeypatch.setattr(here.room, "check", check)
    with pytest.raises(NoRoom):
        here.copy(file, [Original()])
    assert list(file.copy.parent.iterdir()) == []


def test_room_is_shared_by_all_copies(tmp_path: Path) -> None:
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    room = Room(tmp_path / "not" / "there", free - (1 << 30))
    with room.reserve(800 << 20) as held:
        with pytest.raises(NoRoom), room.reserve(800 << 20):
            pass
        held.written(700 << 20)
        with room.reserve(500 << 20):
            pass
    assert room.left() == pytest.approx(1 << 30, abs=200 << 20)


def test_some_space_is_kept_free_by_default(tmp_path: Path) -> None:
    stat = os.statvfs(tmp_path)
    assert default_keep_free(tmp_path) == min(100 * 10**9, int(stat.f_blocks * stat.f_frsize * 0.05))


def test_the_limit_holds_for_all_threads_together() -> None:
    limit = RateLimit(1e6, threading.Event())
    started = time.monotonic()
    threads = [threading.Thread(target=limit.wait, args=(100_000,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started >= 0.3  # the last of the four has waited for the other three


def test_a_stop_ends_a_wait_at_once(file: StageFile) -> None:
    slow = copier(file, rate=1.0)
    threading.Timer(0.1, slow.stop.set).start()
    with pytest.raises(Stopped):
        slow.copy(file, [Original()])
    assert not file.copy.exists()
