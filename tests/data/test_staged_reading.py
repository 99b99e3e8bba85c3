"""The loader on a node whose files are being copied to its own disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from harness.config.schema import StageConfig
from harness.data import stage_paths
from harness.data.copies import mount_point
from harness.data.loader import Loader, StepBatch
from harness.data.observer import NullObserver
from harness.data.order import SampleOrder
from harness.data.read_settings import ReadSettings, batch_bytes
from harness.data.stage import Stager
from harness.data.stage_paths import StagedFiles, staged_path
from harness.data.stage_plan import plan_files
from harness.data.windows import open_sources
from tests.data.staging import SEQ_LEN, small_disk, staging_config, write_source


class Reads(NullObserver):
    """Counts the reads of each (mount, source)."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, str]] = []
        self.done: list[int] = []

    def register(self, keys: list[tuple[str, str]]) -> None:
        self.keys = keys

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        self.done.append(key)


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stage_paths, "LOOK_SECONDS", 0.0)
    return write_source(tmp_path / "web", 3)


def loader(web: Path, staged: bool, observer: NullObserver | None = None) -> Loader:
    sources = open_sources([("web", web)], SEQ_LEN)
    order = SampleOrder(sources, [StageConfig(weights={"web": 1.0})], seed=1, seq_len=SEQ_LEN, global_batch_size=4)
    return Loader(
        sources, order, global_batch_size=4, micro_batch_size=4, dp_rank=0, dp_size=1, start_step=0, seq_len=SEQ_LEN,
        eos_token_id=0, document_mask=True, reading=ReadSettings(ahead_bytes=2 * batch_bytes(4, SEQ_LEN), threads=1),
        observer=observer,
        staged=StagedFiles(web.parent / "scratch", sorted(web.glob("*.ds"))) if staged else None,
    )  # fmt: skip


def stage(web: Path) -> None:
    scratch = web.parent / "scratch"
    Stager(plan_files(staging_config({"web": web}, scratch), scratch), scratch, scratch / "status").run()


def tokens(batch: StepBatch) -> np.ndarray:
    return np.concatenate([micro.input_ids for micro in batch.micro_batches])


def test_the_samples_are_the_same_before_and_after_and_the_identity_too(web: Path) -> None:
    with loader(web, staged=False) as plain, loader(web, staged=True) as staged:
        for step in range(30):
            if step == 10:
                stage(web)
            if step == 15:  # all that the run still needs is on its own disk: the originals are not read any more
                for path in web.glob("*.ds"):
                    damage(path)
            if step < 15:
                expected = tokens(next(plain))
            got = tokens(next(staged))
            if step < 15:
                assert np.array_equal(got, expected)
            assert got.max() < 200  # no byte of the damaged originals


def damage(path: Path) -> None:
    """Other tokens, with the size and time of the true ones."""
    stat = path.stat()
    path.write_bytes(np.full(stat.st_size // 2, 9999, "<u2").tobytes())
    os.utime(path, ns=(stat.st_mtime_ns, stat.st_mtime_ns))


def test_one_file_system_is_named_once(web: Path) -> None:
    reads = Reads()
    with loader(web, staged=True, observer=reads) as loading:
        next(loading)
    assert reads.keys == [(mount_point(web), "web")]
    assert set(reads.done) == {0}


def test_reads_are_counted_where_they_are_made(web: Path) -> None:
    reads = Reads()
    with small_disk(web.parent / "scratch", "1m") as disk, loader(web, staged=True, observer=reads) as loading:
        next(loading)
        before = len(reads.done)
        stage(web)
        for _ in range(5):
            next(loading)
        mounts = [reads.keys[key][0] for key in reads.done]
        assert set(mounts[:before]) == {mount_point(web)}
        assert mounts[-1] == str(disk)


def test_a_copy_that_can_not_be_read_is_made_good_by_the_original(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(web)
    monkeypatch.setattr(stage_paths, "LOOK_SECONDS", 60.0)
    with loader(web, staged=False) as plain:
        expected = [tokens(next(plain)) for _ in range(20)]
    with loader(web, staged=True) as loading:
        assert np.array_equal(tokens(next(loading)), expected[0])
        for path in web.glob("*.ds"):
            os.truncate(staged_path(web.parent / "scratch", path), 0)
        for number in range(1, 20):
            assert np.array_equal(tokens(next(loading)), expected[number])
