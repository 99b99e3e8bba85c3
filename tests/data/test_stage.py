"""A stager and its status file."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import harness.run.files as files_module
from harness.data import stage as module
from harness.data import stage_copy
from harness.data.check import resolve_eos
from harness.data.errors import DataError
from harness.data.stage import Stager
from harness.data.stage_copy import Original
from harness.data.stage_paths import read_path
from harness.data.stage_plan import StageFile, plan_files
from harness.data.stage_status import StageState, StageStatus, read_status, status_path
from harness.data.token_files import open_source
from tests.data.staging import contents, small_disk, staging_config, write_manifest, write_source
from tests.data.test_tokenizer_files import write_tokenizer


@pytest.fixture
def web(tmp_path: Path) -> Path:
    return write_source(tmp_path / "web", 4, tokens=200_000)


def planned(web: Path) -> list[StageFile]:
    scratch = web.parent / "scratch"
    return plan_files(staging_config({"web": web}, scratch), scratch)


def stager(web: Path, **settings: object) -> Stager:
    scratch = web.parent / "scratch"
    return Stager(planned(web), scratch, status_path(scratch, "run", "n1"), **settings)  # type: ignore[arg-type]


def copies(web: Path) -> dict[str, bytes]:
    return contents(planned(web)[0].copy.parent)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.05)


def test_everything_is_there_afterwards_and_the_status_says_so(web: Path) -> None:
    told: list[float] = []
    status = stager(web).run(lambda status: told.append(status.ready_ratio))
    assert status.state is StageState.done and status.ready and not status.problems
    assert copies(web) == contents(web)
    assert read_status(status_path(web.parent / "scratch", "run", "n1")) == status
    size = sum(map(len, contents(web).values()))
    assert status.bytes_wanted == status.bytes_staged == status.bytes_copied == size
    assert (status.files_staged, status.files_wanted) == (13, 13)
    assert told[-1] == 1.0
    again = stager(web).run()
    assert (again.state, again.bytes_copied, again.bytes_staged) == (StageState.done, 0, size)


def test_a_kill_at_any_moment_costs_nothing_that_was_complete(web: Path) -> None:
    """The stager as its own process, killed again and again until it is through."""
    code = f"""
from pathlib import Path
from tests.data.test_stage import stager
stager(Path({str(web)!r}), threads=2, bytes_per_second=3e6).run()
"""
    seen: set[str] = set()
    for kills in range(60):
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            process.wait(timeout=0.4 + 0.1 * kills)  # a busy machine needs longer
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        folder = planned(web)[0].copy.parent
        names = {path.name for path in folder.glob("*") if not path.name.startswith(".")} if folder.exists() else set()
        assert seen <= names
        for name in names - seen:  # whatever has its name is whole
            assert (folder / name).read_bytes() == (web / name).read_bytes()
        seen = names
        if process.returncode == 0:
            break
    assert kills >= 1 and process.returncode == 0
    assert copies(web) == contents(web)


def test_two_runs_on_one_node_share_a_folder(web: Path) -> None:
    """At the same time, from two processes."""
    code = f"""
import sys
from pathlib import Path
from tests.data.test_stage import planned
from harness.data.stage import Stager
web = Path({str(web)!r})
status = Stager(planned(web), web.parent / "scratch", web.parent / sys.argv[1], threads=3, bytes_per_second=4e6).run()
print(status.state, status.bytes_copied)
"""
    runs = [subprocess.Popen([sys.executable, "-c", code, name], stdout=subprocess.PIPE, text=True) for name in "ab"]
    said = [run.communicate()[0].split() for run in runs]
    assert [state for state, _ in said] == ["done", "done"]
    assert sum(int(copied) for _, copied in said) == sum(map(len, contents(web).values()))  # nothing was copied twice
    assert copies(web) == contents(web)


def test_what_does_not_fit_stays_and_the_message_says_how_much_is_missing(web: Path) -> None:
    free = os.statvfs(web).f_bavail * os.statvfs(web).f_frsize
    status = stager(web, keep_free=free + (1 << 34)).run()
    assert status.state is StageState.partial and not status.ready
    assert (status.files_left, status.files_staged) == (13, 0)
    (problem,) = status.problems
    assert problem.startswith(
        f"data.stage_to={web.parent}/scratch: no room for 13 files of web (1.6 MB), which stay where"
    )
    assert "17.2 GB are missing, with " in problem and "data.stage_keep_free_bytes" in problem


@pytest.mark.parametrize("keep_free", [0, 300_000])
def test_a_full_disk(web: Path, keep_free: int) -> None:
    with small_disk(web.parent / "scratch", "1m") as disk:
        status = stager(web, keep_free=keep_free).run()
        stat, there = os.statvfs(disk), copies(web)
    assert status.state is StageState.partial
    originals = contents(web)
    assert len(there) == status.files_staged > 4 and all(originals[name] == data for name, data in there.items())
    assert stat.f_bavail * stat.f_frsize >= keep_free
    assert status.bytes_missing > 0


def test_a_damaged_and_a_missing_file_are_named_and_the_others_are_copied(web: Path) -> None:
    files = planned(web)
    data = bytearray((web / "001.ds").read_bytes())
    data[1000] ^= 1
    stat = (web / "001.ds").stat()
    (web / "001.ds").write_bytes(data)
    os.utime(web / "001.ds", ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    (web / "002.ds").unlink()
    scratch = web.parent / "scratch"
    status = Stager(files, scratch, scratch / "status").run()
    assert status.state is StageState.failed and status.files_failed == 2 and status.files_staged == 11
    text = "\n".join(status.problems)
    assert (
        f"{web}/001.ds (read from the original) does not have the sha256 that its folder's manifest.json names" in text
    )
    assert f"{web}/002.ds could not be copied to {files[0].copy.parent}: No such file or directory" in text


def test_a_read_that_fails_once_is_tried_again(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, failed = Original.open, set()

    def flaky(self: Original, file: StageFile, offset: int) -> object:
        if file.name.endswith(".ds") and file.name not in failed:
            failed.add(file.name)
            raise OSError(5, "planted")
        return real(self, file, offset)

    monkeypatch.setattr(Original, "open", flaky)
    assert stager(web).run().state is StageState.done
    assert len(failed) == 4


def hang(monkeypatch: pytest.MonkeyPatch, name: str) -> threading.Event:
    """Reads of this file do not come back until the event is set."""
    real, let_go = Original.open, threading.Event()

    def hanging(self: Original, file: StageFile, offset: int) -> object:
        if file.name == name:
            let_go.wait()
        return real(self, file, offset)

    monkeypatch.setattr(Original, "open", hanging)
    return let_go


def test_a_read_that_hangs_holds_up_no_other_file_and_fails_in_the_end(
    web: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go = hang(monkeypatch, "000.ds")
    status = stager(web, threads=2, stall_seconds=0.5).run()
    assert status.state is StageState.failed and status.files_staged == 12
    assert "no byte came for 0 s: the storage of the sources hangs" in status.problems[0]
    let_go.set()


def test_waiting_for_another_run_is_no_stall(web: Path) -> None:
    """It copies the only file that we want as slowly as it likes."""
    scratch = web.parent / "scratch"
    one = [file for file in planned(web) if file.name == "000.ds"]
    other = Stager(one, scratch, scratch / "other", bytes_per_second=one[0].size / 3, threads=1)
    monkey = pytest.MonkeyPatch()
    monkey.setattr(stage_copy, "CHUNK_BYTES", one[0].size // 30)
    thread = threading.Thread(target=other.run)
    thread.start()
    while not list(one[0].copy.parent.glob(".000.ds.*.part")):
        pass
    ours = Stager(one, scratch, scratch / "ours", stall_seconds=1.0).run()
    thread.join()
    monkey.undo()
    assert ours.state is StageState.done and ours.bytes_copied == 0 and ours.seconds > 1.0


def test_a_stop_keeps_what_is_there(web: Path) -> None:
    slow = stager(web, threads=1, bytes_per_second=1e6)
    threading.Timer(0.5, slow.stop).start()
    assert slow.run().state is StageState.stopped
    assert stager(web).run().state is StageState.done


def test_copies_that_somebody_removes_are_missed(web: Path) -> None:
    ours = stager(web)
    ours.run()
    assert ours.look_again().ready
    planned(web)[0].copy.unlink()
    status = ours.look_again()
    assert not status.ready and status.files_staged == 12
    assert status.problems == [f"1 copies in {web.parent}/scratch are gone: something removes them"]
    assert read_status(status_path(web.parent / "scratch", "run", "n1")) == status


def test_a_folder_that_can_not_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(
        DataError, match=f"data.stage_to={tmp_path}/file/scratch: can't write there \\(Not a directory\\)"
    ):
        Stager([], tmp_path / "file" / "scratch", tmp_path / "status")


def test_the_status_in_words() -> None:
    status = StageStatus(seconds=24, bytes_wanted=40 * 10**9, bytes_staged=10 * 10**9, bytes_per_second=5e8)
    assert status.text == "staged 10.0 GB of 40.0 GB (25%) in 24 s, 500.0 MB/s, 1 min 0 s left"
    assert StageStatus(state=StageState.done).ready_ratio == 1.0


def test_another_file_is_no_status(tmp_path: Path) -> None:
    for text in ('{"state": 7}', '["done"]', '{"state": "do'):
        (tmp_path / "x").write_text(text)
        with pytest.raises(ValueError, match=f"{tmp_path}/x"):
            read_status(tmp_path / "x")
    assert read_status(tmp_path / "none") is None


def url_source(web: Path) -> list[StageFile]:
    """The same files, through fsspec."""
    scratch = web.parent / "scratch"
    return plan_files(staging_config({"web": f"file://{web}"}, scratch), scratch)


def test_an_object_store_is_read_through_fsspec(web: Path) -> None:
    files, scratch = url_source(web), web.parent / "scratch"
    assert Stager(files, scratch, scratch / "status").run().state is StageState.done
    assert contents(files[0].copy.parent) == contents(web)
    assert read_path(f"file://{web}", str(scratch)) == str(files[0].copy.parent)
    assert read_path(f"file://{web}/000.ds", str(scratch)) == str(files[0].copy.parent / "000.ds")
    assert read_path(str(web), str(scratch)) == str(web)


def test_all_of_an_object_store_must_fit(web: Path) -> None:
    """A run reads the copies and nothing else: fewer of them would be another data set."""
    scratch = web.parent / "scratch"
    status = Stager(url_source(web), scratch, scratch / "status", keep_free=1 << 60).run()
    assert status.state is StageState.failed
    assert f"no room for file://{web}/000.ds, and all of it is needed" in "\n".join(status.problems)


def test_one_file_of_a_store_beside_copies_of_all_of_it(web: Path) -> None:
    """Another run on this node has staged the whole folder."""
    scratch = web.parent / "scratch"
    Stager(url_source(web), scratch, scratch / "status").run()
    data = staging_config({"web": f"file://{web}/001.ds"}, scratch)
    assert Stager(plan_files(data, scratch), scratch, scratch / "status").run().ready


def test_copies_of_what_an_object_store_has_no_more(web: Path) -> None:
    files, scratch = url_source(web), web.parent / "scratch"
    Stager(files, scratch, scratch / "status").run()
    for path in web.glob("003.ds*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"holds 003\.ds, which file://{web} does not have any more"):
        Stager(url_source(web), scratch, scratch / "status")


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_the_tokenizer_is_staged_so_that_documents_end_where_they_did(web: Path, scheme: str) -> None:
    """A run that finds no tokenizer beside its copies does not know how documents end."""
    write_tokenizer(web / "tokenizer", {"a": 0, "</s>": 7}, tokenizer_config={"eos_token": "</s>"})
    for metadata in web.glob("*.metadata"):
        metadata.write_text("tokenizer/tokenizer.json|2\n200000\n200.0 K tokens\n")
    write_manifest(web)
    scratch = web.parent / "scratch"
    data = staging_config({"web": f"{scheme}{web}"}, scratch, document_mask=True)
    data.eos_token_id = None
    files = plan_files(data, scratch)
    assert Stager(files, scratch, scratch / "status").run().ready
    copies = open_source("web", files[0].copy.parent)
    assert resolve_eos(data, [copies]) == 7
    assert (len(copies.files), copies.tokens) == (4, 800_000)


def test_a_disk_with_no_room_for_the_status_stops_no_copy(web: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last status, for which the agent waits, is tried until there is room."""
    failed: list[StageState] = []
    real = module.write_status

    def full(path: Path, status: StageStatus) -> None:
        if not status.over or StageState.done not in failed:
            failed.append(status.state)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, status)

    monkeypatch.setattr(module, "write_status", full)
    monkeypatch.setattr(files_module.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(files_module, "MOST_PAUSE_SECONDS", 0.0)
    ours = stager(web)
    assert ours.run().state is StageState.done and failed[-1] is StageState.done
    assert copies(web) == contents(web)
    written = read_status(ours._status_path)
    assert written is not None and written.state is StageState.done
