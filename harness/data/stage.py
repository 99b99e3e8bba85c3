"""Copies a run's files to this node with several threads, and says how far it has come."""

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.data.errors import DataError
from harness.data.origins import is_url, list_folder
from harness.data.stage_copy import Busy, Copier, Damaged, NoRoom, Origin, Original, RateLimit, Room, Stopped, is_staged
from harness.data.stage_plan import StageFile
from harness.data.stage_status import StageState, StageStatus, write_status
from harness.data.token_files import source_key
from harness.run.files import keep_trying
from harness.text import bytes_text

STATUS_SECONDS = 1.0
LAST_STATUS_SECONDS = 600.0
"""How long a stager whose disk is full tries to say how it ended."""
RATE_SECONDS = 30.0
"""The speed that is told is that of the last so many seconds."""
TRIES = 3
"""For a file whose original can't be read; each try comes after all other files have had theirs."""
RETRY_SECONDS = 2.0
STALL_SECONDS = 600.0
"""No byte for so long: reads hang, and staging has failed. Threads inside such a read end with the process."""
PROBLEMS_TOLD = 20


@dataclass
class _Task:
    """A file that is still to be copied."""

    file: StageFile
    tries: int = 0
    not_before: float = 0.0
    others_part: int = -1
    """Bytes that another run's stager had of it when we looked last."""


class Stager:
    """One per node and run. `run` copies; the status file says how it goes, from the first moment to the end."""

    def __init__(
        self,
        files: Sequence[StageFile],
        stage_to: Path,
        status: Path,
        *,
        threads: int = 8,
        keep_free: int | None = None,
        bytes_per_second: float | None = None,
        peers: Sequence[Origin] = (),
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        """`files` in the order in which they are wanted. Raises DataError where `stage_to` can't be made or written, or
        holds token files that a source in an object store does not have any more."""
        make_stage_folder(stage_to)
        _refuse_strangers(files)
        self._status_path = status
        self._files = tuple(files)
        self._threads = threads
        self._peers = tuple(peers)
        self._stall_seconds = stall_seconds
        self._room = Room(stage_to, keep_free)
        self._stage_to = stage_to
        self._lock = threading.Lock()
        self._tasks = deque(_Task(file) for file in self._files)
        self._busy = 0
        self._stop = threading.Event()
        self._moved = time.monotonic()
        self._left: list[StageFile] = []
        self._failed: dict[str, str] = {}
        self._copied_at: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self.status = StageStatus(
            pid=os.getpid(),
            started=time.time(),
            files_wanted=len(self._files),
            bytes_wanted=sum(file.size for file in self._files),
        )
        self._copier = Copier(self._room, RateLimit(bytes_per_second, self._stop), self._stop, self._told)

    def run(self, tell: Callable[[StageStatus], None] = lambda status: None) -> StageStatus:
        """Copy everything that fits. `tell` is called about once a second and at the end. Nothing here raises but what
        the status file's disk does."""
        started = self._moved = time.monotonic()
        threads = [threading.Thread(target=self._work, name=f"stage-{n}", daemon=True) for n in range(self._threads)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if time.monotonic() - self._moved > self._stall_seconds:
                self._failed[""] = f"no byte came for {self._stall_seconds:.0f} s: the storage of the sources hangs"
                break
            self._publish(started, tell)
            with contextlib.suppress(StopIteration):
                next(thread for thread in threads if thread.is_alive()).join(STATUS_SECONDS)
        self.status.state = self._end()
        self._publish(started, tell)
        return self.status

    def look_again(self) -> StageStatus:
        """After `run`: whether all copies are still there, since something may clean the disk. Raises OSError."""
        there = [file for file in self._files if is_staged(file)]
        status = self.status
        if len(there) < status.files_staged:
            status.state = StageState.failed
            status.problems = [
                f"{status.files_staged - len(there)} copies in {self._stage_to} are gone: something removes them"
            ]
        status.files_staged, status.bytes_staged = len(there), sum(file.size for file in there)
        status.updated = time.time()
        write_status(self._status_path, status)
        return status

    def stop(self) -> None:
        """Have `run` return soon. What is half copied stays, for the next stager to go on with."""
        self._stop.set()

    def _end(self) -> StageState:
        if self._failed:
            return StageState.failed
        if self.status.files_staged + len(self._left) < len(self._files):
            return StageState.stopped
        return StageState.partial if self._left else StageState.done

    def _work(self) -> None:
        while not self._stop.is_set() and (task := self._next()) is not None:
            done = False
            try:
                done = self._copy(task)
            except Exception as error:  # an object store's library may raise anything
                done = self._again(task, f"{type(error).__name__}: {error}")
            finally:
                with self._lock:
                    self._busy -= 1
                    if not done:
                        self._tasks.append(task)

    def _next(self) -> _Task | None:
        """The next file whose time has come; None: there is none and will be none."""
        while not self._stop.is_set():
            with self._lock:
                if not self._tasks and not self._busy:
                    return None
                now = time.monotonic()
                for task in self._tasks:
                    if task.not_before <= now:
                        self._tasks.remove(task)
                        self._busy += 1
                        return task
            self._stop.wait(0.2)
        return None

    def _copy(self, task: _Task) -> bool:
        """Whether we are done with this file, one way or the other."""
        file = task.file
        try:
            origin = self._copier.copy(file, [*self._peers, Original()])
        except Busy as busy:  # another run's stager, on this node: its copy is as good as ours
            if busy.size != task.others_part:
                task.others_part, self._moved = busy.size, time.monotonic()
            task.not_before = time.monotonic() + RETRY_SECONDS
            return False
        except Stopped:
            return False
        except NoRoom:
            if is_url(file.origin):  # there is nothing else that it could be read from
                self._failed[file.origin] = (
                    f"data.stage_to={self._stage_to}: no room for {file.origin}, and all of it is needed"
                )
                return True
            with self._lock:
                self._left.append(file)
            return True
        except Damaged as error:
            self._failed[file.origin] = f"{error}. Prepare it again, or bring it again from where it came"
            return True
        except OSError as error:
            return self._again(task, error.strerror or str(error))
        with self._lock:
            self.status.files_staged += 1
            self.status.bytes_staged += file.size
            if origin is not None and origin != Original.name:
                self.status.bytes_from_peers += file.size
        return True

    def _again(self, task: _Task, why: str) -> bool:
        task.tries += 1
        if task.tries < TRIES:
            task.not_before = time.monotonic() + RETRY_SECONDS * task.tries
            return False
        self._failed[task.file.origin] = f"{task.file.origin} could not be copied to {task.file.copy.parent}: {why}"
        return True

    def _told(self, size: int) -> None:
        with self._lock:
            self.status.bytes_copied += size
            self._moved = time.monotonic()

    def _publish(self, started: float, tell: Callable[[StageStatus], None]) -> None:
        status, now = self.status, time.monotonic()
        with self._lock:
            self._copied_at.append((now, status.bytes_copied))
            while len(self._copied_at) > 2 and now - self._copied_at[0][0] > RATE_SECONDS:
                self._copied_at.popleft()
            (since, before), left = self._copied_at[0], list(self._left)
        status.seconds, status.updated = now - started, time.time()
        status.bytes_per_second = (status.bytes_copied - before) / max(1e-9, now - since)
        status.files_left, status.files_failed = len(left), len(self._failed)
        status.bytes_missing = max(0, sum(file.size for file in left) - self._room.left()) if left else 0
        status.problems = list(self._failed.values())[:PROBLEMS_TOLD]
        if left:
            status.problems.append(no_room_text(self._stage_to, left, status.bytes_missing, self._room.keep_free))
        self._write_status()
        tell(status)

    def _write_status(self) -> None:
        """On a full disk the next status may find room; the last one waits for it, since the agent waits for that."""
        patience = LAST_STATUS_SECONDS if self.status.over else 0.0
        try:
            keep_trying(
                lambda: write_status(self._status_path, self.status),
                str(self._status_path),
                patience,
                self._stop.is_set,
            )
        except OSError as error:
            if self.status.over:
                print(f"could not write {self._status_path}: {error}", flush=True)


def make_stage_folder(stage_to: Path) -> None:
    """Make the folder if it is not there. Raises DataError where that can't be, or where it can't be written."""
    probe = stage_to / f".writable-{os.getpid()}"
    try:
        stage_to.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise DataError(
            f"data.stage_to={stage_to}: can't write there ({error.strerror}). Give a folder on a disk of the node's own that "
            "you may write to, or null."
        ) from error


def _refuse_strangers(files: Sequence[StageFile]) -> None:
    """What lies in the folder of a source in an object store is all that a run reads: nothing may be there beside it."""
    folders = {file.folder: file for file in files if is_url(file.origin)}
    for folder, one in folders.items():
        wanted = {file.name for file in files if file.folder == folder}
        strangers = {path.name for path in folder.glob("*.ds")} - wanted
        if not strangers:
            continue
        url = one.origin.removesuffix(one.name).rstrip("/")
        strangers -= list_folder(url, source_key(one.source, url)).keys()  # staged for a run that wants more of them
        if strangers:
            raise DataError(
                f"data.sources.{one.source}: {folder} holds {', '.join(sorted(strangers)[:3])}, which {url} does not have any "
                "more: remove that"
            )


def no_room_text(stage_to: Path, left: Sequence[StageFile], missing: int, keep_free: int) -> str:
    """Says what stays on shared storage, and how much room would be needed."""
    total = sum(file.size for file in left)
    sources = ", ".join(sorted({file.source for file in left}))
    return (
        f"data.stage_to={stage_to}: no room for {len(left)} file{'s' * (len(left) != 1)} of {sources} ({bytes_text(total)}), "
        f"which stay where they are; {bytes_text(missing)} are missing, with {bytes_text(keep_free)} kept free "
        "(data.stage_keep_free_bytes). Make room, or name a larger disk"
    )
