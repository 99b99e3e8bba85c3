import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.observe.canary import PROBE_FILE, CanaryCollector, CanaryMount
from tests.observe.pages import Page, page_of
from tests.waiting import alive, wait_for, wait_until_dead

Start = Callable[..., CanaryCollector]


@pytest.fixture
def start() -> Iterator[Start]:
    made: list[CanaryCollector] = []

    def make(*mounts: CanaryMount, timeout: float = 10.0) -> CanaryCollector:
        made.append(CanaryCollector(mounts, "node1", timeout))
        return made[-1]

    yield make
    for collector in made:
        collector.close()


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "shard.ds"
    path.write_bytes(os.urandom(1_000_000))
    return path


def scrape(collector: CanaryCollector) -> Page:
    return page_of(collector.collect())


def seconds(page: Page, kind: str, mount: str = "/fsx") -> float | None:
    return page.get("harness_canary_read_seconds", mount=mount, kind=kind)


def timeouts(page: Page, kind: str, mount: str = "/fsx") -> float | None:
    return page.get("harness_canary_timeouts_total", mount=mount, kind=kind)


def test_three_kinds_of_reads(start: Start, shard: Path, tmp_path: Path) -> None:
    before = time.time()
    page = scrape(start(CanaryMount("/fsx", tmp_path, [shard])))
    for kind in ("hot", "cold", "meta"):
        assert 0 < (seconds(page, kind) or 0) < 10
        assert timeouts(page, kind) == 0
        assert page.get("harness_canary_errors_total", mount="/fsx", kind=kind) == 0
        last = page.get("harness_canary_last_run_timestamp_seconds", mount="/fsx", kind=kind)
        assert last is not None and before <= last <= time.time()


def test_a_mount_without_data_files_opens_the_folder(start: Start, tmp_path: Path) -> None:
    page = scrape(start(CanaryMount("/fsx", tmp_path)))
    assert seconds(page, "meta") is not None and seconds(page, "cold") is None
    for kind in ("hot", "meta"):
        assert page.get("harness_canary_errors_total", mount="/fsx", kind=kind) == 0


def test_the_hot_file_is_small_private_and_removed_at_the_end(start: Start, tmp_path: Path) -> None:
    collector = start(CanaryMount("/fsx", tmp_path))
    scrape(collector)
    [hot] = tmp_path.iterdir()
    assert hot.name == ".harness-canary-node1"
    assert hot.stat().st_size == 4096 and hot.stat().st_mode & 0o777 == 0o600
    collector.close()
    assert not list(tmp_path.iterdir())


def test_a_hot_file_that_was_removed_or_cut_is_made_again(start: Start, tmp_path: Path) -> None:
    collector = start(CanaryMount("/fsx", tmp_path))
    scrape(collector)
    hot = tmp_path / ".harness-canary-node1"
    hot.unlink()
    assert seconds(scrape(collector), "hot") is not None
    hot.write_bytes(b"x")
    assert seconds(scrape(collector), "hot") is None  # not what we wrote: no figure
    assert seconds(scrape(collector), "hot") is not None
    assert hot.stat().st_size == 4096


def test_without_direct_reads_the_page_cache_is_dropped_instead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import harness.observe.canary_probe as probe

    path = tmp_path / "hot"
    path.write_bytes(bytes(4096))
    dropped, real = [], os.open

    def no_direct(name: str, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(22, "Invalid argument", name)
        return real(name, flags, *mode)

    monkeypatch.setattr(os, "open", no_direct)
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: dropped.append(arguments[1:]))
    assert probe.read_hot(str(path)) > 0
    assert dropped == [(0, 0, os.POSIX_FADV_DONTNEED)]


def test_cold_reads_go_all_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import harness.observe.canary_probe as probe

    path = tmp_path / "shard"
    path.write_bytes(bytes(64 * 4096 + 100))
    offsets, real = [], os.pread
    monkeypatch.setattr(os, "pread", lambda fd, size, offset: offsets.append(offset) or real(fd, size, offset))
    for _ in range(200):
        probe.read_cold(str(path))
    assert len(set(offsets)) > 16 and all(offset % 4096 == 0 and offset < 64 * 4096 for offset in offsets)


def test_a_file_smaller_than_a_page_can_be_read_cold(start: Start, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.write_bytes(b"x")
    assert seconds(scrape(start(CanaryMount("/fsx", None, [small]))), "cold") is not None


@pytest.mark.parametrize(("number", "text"), [(30, "Read-only file system"), (13, "Permission denied")])
def test_where_nothing_can_be_written_there_is_no_hot_probe(
    start: Start, shard: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, number: int, text: str
) -> None:
    caplog.set_level("INFO")
    collector = start(CanaryMount("/fsx", tmp_path, [shard]))
    collector._failed(collector._probes["hot /fsx"], number, text)
    page = scrape(collector)
    assert seconds(page, "hot") is None and timeouts(page, "hot") is None
    assert seconds(page, "cold") is not None and seconds(page, "meta") is not None
    assert f"no hot canary on /fsx: {text}" in caplog.messages
    assert not (tmp_path / ".harness-canary-node1").exists()


def test_a_mount_that_takes_no_files_has_no_hot_probe(start: Start, tmp_path: Path) -> None:
    page = scrape(start(CanaryMount("/fsx", Path("/sys")), CanaryMount("/scratch", tmp_path)))  # not even root may
    assert timeouts(page, "hot") is None and seconds(page, "hot") is None
    assert seconds(page, "hot", "/scratch") is not None


def test_errors_are_counted_logged_once_and_pass(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    late = tmp_path / "late.ds"
    collector = start(CanaryMount("/fsx", None, [late]))
    for _ in range(3):
        page = scrape(collector)
    assert page.get("harness_canary_errors_total", mount="/fsx", kind="cold") == 3
    assert seconds(page, "cold") is None and timeouts(page, "cold") == 0
    assert len([message for message in caplog.messages if "cold canary on /fsx failed" in message]) == 1
    late.write_bytes(bytes(8192))
    assert seconds(scrape(collector), "cold") is not None


def test_a_stuck_probe_times_out_and_holds_up_no_other(start: Start, shard: Path, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.ds"
    os.mkfifo(stuck)  # opening it blocks until somebody writes
    timeout = 0.3
    collector = start(CanaryMount("/stuck", None, [stuck]), CanaryMount("/fsx", tmp_path, [shard]), timeout=timeout)
    first, second = scrape(collector), scrape(collector)
    assert timeouts(first, "cold", "/stuck") == 1 and timeouts(second, "cold", "/stuck") == 2
    out = [seconds(page, "cold", "/stuck") or 0 for page in (first, second)]
    assert timeout <= out[0] < out[1]  # it never looks fast, and grows
    assert second.get("harness_canary_last_run_timestamp_seconds", mount="/stuck", kind="cold") is None
    for kind in ("hot", "cold", "meta"):
        assert seconds(second, kind) is not None and timeouts(second, kind) == 0


def test_a_probe_that_comes_back_is_used_again(start: Start, tmp_path: Path) -> None:
    stuck = tmp_path / "stuck.ds"
    os.mkfifo(stuck)
    collector = start(CanaryMount("/fsx", None, [stuck]), timeout=0.2)
    assert timeouts(scrape(collector), "cold") == 1
    opened: list[int] = []
    writer = threading.Thread(target=lambda: opened.append(os.open(stuck, os.O_WRONLY)))
    writer.start()
    writer.join()
    stuck.unlink()
    stuck.write_bytes(bytes(8192))
    wait_for(lambda: (seconds(scrape(collector), "cold") or 1) < 0.2)
    for fd in opened:
        os.close(fd)


def test_a_stopped_child_times_everything_out(start: Start, shard: Path, tmp_path: Path) -> None:
    collector = start(CanaryMount("/fsx", tmp_path, [shard]), timeout=0.5)
    scrape(collector)
    assert collector.child_pid is not None
    os.kill(collector.child_pid, signal.SIGSTOP)
    page = scrape(collector)
    for kind in ("hot", "cold", "meta"):
        assert timeouts(page, kind) == 1 and (seconds(page, kind) or 0) >= 0.5
    os.kill(collector.child_pid, signal.SIGCONT)
    wait_for(lambda: all((seconds(scrape(collector), kind) or 1) < 0.5 for kind in ("hot", "cold", "meta")))


def test_a_stopped_child_does_not_outlive_close(start: Start, tmp_path: Path) -> None:
    collector = start(CanaryMount("/fsx", tmp_path))
    scrape(collector)
    pid = collector.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    collector.close()
    wait_until_dead([pid])


def test_a_dead_child_is_an_error_and_is_replaced(start: Start, tmp_path: Path) -> None:
    collector = start(CanaryMount("/fsx", tmp_path))
    scrape(collector)
    pid = collector.child_pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait_until_dead([pid])
    with pytest.raises(RuntimeError, match="canary process ended"):
        collector.collect()
    assert seconds(scrape(collector), "hot") is not None
    assert collector.child_pid != pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_signals_meant_for_the_job_do_not_end_the_child(start: Start, tmp_path: Path, number: int) -> None:
    collector = start(CanaryMount("/fsx", tmp_path))
    scrape(collector)
    pid = collector.child_pid
    assert pid is not None
    os.kill(pid, number)
    assert seconds(scrape(collector), "hot") is not None
    assert collector.child_pid == pid


def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from harness.observe.canary import CanaryCollector, CanaryMount\n"
        "c = CanaryCollector([CanaryMount('/fsx', pathlib.Path(sys.argv[1]))], 'n')\n"
        "list(c.collect()); print(c.child_pid, flush=True); time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    wait_until_dead([child])


def test_the_child_dies_with_its_parent_even_while_stuck(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    child = subprocess.Popen(
        [sys.executable, "-I", "-S", PROBE_FILE, str(os.getpid())], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    child.communicate(b'{"id": "a", "kind": "cold", "path": "%s"}\n' % os.fsencode(tmp_path / "fifo"), timeout=30)
    assert child.returncode == 0


def test_the_child_imports_nothing_heavy() -> None:
    code = f"import runpy, sys; runpy.run_path({str(PROBE_FILE)!r}); print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not {"prometheus_client", "numpy", "torch", "harness", "site", "logging", "subprocess"} & set(
        modules.split()
    )
