"""The reaper with clocks in the test's hand, on real folders."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from harness.monitor.reaper import LEASE_SECONDS, Reaper

NOW = 1_700_000_000.0
INTERVAL = 5.0


class World:
    """A targets folder, a reaper, and the time. `clock_error`: how wrong the nodes' and the file server's clocks are."""

    def __init__(self, tmp_path: Path, clock_error: float = 0.0) -> None:
        self.targets_dir = tmp_path / "shared" / ".targets"
        self.sd_dir = tmp_path / "local"
        self.seconds = 0.0
        self.clock_error = clock_error
        self.reaper = self.new_reaper()

    def new_reaper(self) -> Reaper:
        return Reaper(
            self.targets_dir,
            self.sd_dir,
            interval=INTERVAL,
            monotonic=lambda: self.seconds,
            wall=lambda: NOW + self.seconds,
        )

    def register(self, node: str, *, attempt: int = 0, address: str | None = None, targets: Any = None) -> Path:
        self.targets_dir.mkdir(parents=True, exist_ok=True)
        labels = {"run": "smol", "attempt": str(attempt), "slurm_job_id": "7", "node": node}
        lease = NOW + self.seconds + self.clock_error
        path = self.targets_dir / f"smol.{attempt}.{node}.json"
        record = {"targets": [address or f"{node}:9000"] if targets is None else targets, "labels": labels}
        path.with_suffix(".tmp").write_text(json.dumps({**record, "lease": lease}))
        os.utime(path.with_suffix(".tmp"), (lease, lease))
        os.replace(path.with_suffix(".tmp"), path)
        return path

    def poll(self, seconds: float = INTERVAL) -> set[str]:
        """Nodes that Prometheus is told of, from the file that it reads."""
        self.seconds += seconds
        self.reaper.poll()
        listed = json.loads(self.reaper.sd_file.read_text())
        return {entry["labels"]["node"] for entry in listed}

    def metric(self, name: str, **labels: str) -> float:
        value = self.reaper.metrics.registry.get_sample_value(name, labels)
        assert value is not None, name
        return value


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_a_folder_that_is_not_there_yet(world: World) -> None:
    assert world.poll() == set()
    world.register("n1")
    assert world.poll() == {"n1"}


def test_what_prometheus_reads(world: World) -> None:
    world.register("n1")
    world.poll()
    assert json.loads((world.sd_dir / "harness.json").read_text()) == [
        {"targets": ["n1:9000"], "labels": {"run": "smol", "attempt": "0", "slurm_job_id": "7", "node": "n1"}}
    ]
    assert os.listdir(world.sd_dir) == ["harness.json"]  # no temporary file is left
    assert world.metric("harness_sd_targets") == 1
    assert world.metric("harness_sd_lease_timestamp_seconds") == pytest.approx(NOW)
    assert world.metric("harness_sd_poll_timestamp_seconds") == NOW + INTERVAL


def test_a_dead_node_stays_for_its_lease(world: World) -> None:
    world.register("dead")
    world.poll(0)
    while world.seconds < LEASE_SECONDS:
        world.register("alive")
        assert world.poll() == {"alive", "dead"}
    assert world.poll() == {"alive"}
    assert world.metric("harness_sd_lapsed_total") == 1
    assert world.metric("harness_sd_targets") == 1
    world.register("dead")  # it was only cut off
    assert world.poll() == {"alive", "dead"}


def test_clean_exits(world: World) -> None:
    world.register("n1")
    removed = world.register("n2")
    assert world.poll() == {"n1", "n2"}
    world.register("n1", targets=[])
    removed.unlink()
    assert world.poll() == set()
    assert world.metric("harness_sd_lapsed_total") == 0


@pytest.mark.parametrize("clock_error", [-3600.0, 3600.0])
def test_wrong_clocks(tmp_path: Path, clock_error: float) -> None:
    world = World(tmp_path, clock_error)
    world.register("n1")
    world.poll()
    for _ in range(3):
        world.register("n1")
        assert world.poll() == {"n1"}
    polls = 0
    while world.poll():
        polls += 1
    assert polls * INTERVAL == LEASE_SECONDS


def test_files_of_long_dead_nodes_are_not_taken_in(world: World) -> None:
    world.register("dead")
    world.seconds += 3600
    world.register("alive")
    assert world.poll() == {"alive"}


def test_a_new_reaper_lets_a_lease_run_on(world: World) -> None:
    world.register("dead")
    world.poll(40)
    world.reaper = world.new_reaper()
    assert world.poll(0) == {"dead"}
    assert world.poll(10) == {"dead"}
    assert world.poll(10) == {"dead"}
    assert world.poll(10) == set()


@pytest.mark.parametrize("content", [b"", b"half a fi", b'{"targets": ["a:1"], "labels": {"job": "x"}, "lease": 1}'])
def test_foreign_files_are_counted_once(world: World, content: bytes) -> None:
    world.register("n1")
    (world.targets_dir / "foreign.json").write_bytes(content)
    for _ in range(3):
        world.register("n1")
        assert world.poll() == {"n1"}
    assert world.metric("harness_sd_errors_total", reason="invalid") == 1


def test_files_that_cannot_be_read(world: World) -> None:
    world.register("n1")
    (world.targets_dir / "folder.json").mkdir()
    os.mkfifo(world.targets_dir / "fifo.json")
    (world.targets_dir / "dangling.json").symlink_to("/nowhere")
    (world.targets_dir / "README").write_text("not for the reaper")
    (world.targets_dir / ".n9.json").write_text("half a tempor")
    assert world.poll() == {"n1"}
    assert world.metric("harness_sd_errors_total", reason="unreadable") == 1
    assert world.metric("harness_sd_errors_total", reason="invalid") == 1


def test_a_torn_version_keeps_the_last_good_one_for_its_lease(world: World) -> None:
    path = world.register("n1")
    world.poll(0)
    path.write_text("{")
    while world.seconds < LEASE_SECONDS:
        assert world.poll() == {"n1"}
    assert world.poll() == set()


def test_the_youngest_claims_a_port(world: World) -> None:
    world.register("n1", attempt=0, address="n1:9000")
    world.poll()
    world.register("n1", attempt=1, address="n1:9000")
    world.poll()
    listed = json.loads(world.reaper.sd_file.read_text())
    assert [entry["labels"]["attempt"] for entry in listed] == ["1"]


def test_an_unreadable_folder_ages_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.register("n1")
    world.poll()

    def broken(path: Path) -> None:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patch:
        patch.setattr("harness.monitor.reaper.os.scandir", broken)
        for _ in range(100):
            assert world.poll() == {"n1"}
    assert world.metric("harness_sd_errors_total", reason="folder") == 100
    assert world.metric("harness_sd_poll_timestamp_seconds") == NOW + INTERVAL
    assert world.poll() == {"n1"}


def test_a_poll_that_hung_lapses_nobody(world: World) -> None:
    world.register("n1")
    world.poll()
    assert world.poll(600) == {"n1"}


def test_a_list_that_cannot_be_written_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.poll()

    def full(path: Path, text: str) -> None:
        raise OSError(28, "No space left on device")

    world.register("n1")
    with monkeypatch.context() as patch:
        patch.setattr("harness.monitor.reaper.write_atomic", full)
        assert world.poll() == set()
    assert world.metric("harness_sd_errors_total", reason="write") == 1
    assert world.poll() == {"n1"}
