"""Writing files so that a reader never sees half of one, whatever is killed when."""

import contextlib
import errno
import fcntl
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from harness.text import duration_text

Result = TypeVar("Result")

MAY_PASS = frozenset(
    {
        errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.ETIMEDOUT,
        errno.ENOTCONN, errno.EHOSTDOWN,
    }
)  # fmt: skip
"""Why a folder can't be written now and may be again: no room, a mount that is away, a ticket that has run out."""
MOST_PAUSE_SECONDS = 15.0
"""Longest wait between two tries of `keep_trying`."""


class DamagedFile(ValueError):
    """A file that is not what it should be; the message says which and in what way."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.path, self.why = path, why


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace `path` by `content`: complete, on disk, or not at all. Raises OSError (disk full, no permission)."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as f:
            f.write(content if isinstance(content, bytes) else content.encode())
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # a file system that has gone read-only keeps the draft
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):  # name the file that was meant
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    fsync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of `value` as indented JSON."""
    write_atomic(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`, or None if there is no such file. Raises DamagedFile for something else than JSON, or OSError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except json.JSONDecodeError as error:
        empty = not error.doc.strip()
        why = "is empty" if empty else f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise DamagedFile(path, why) from error
    except UnicodeDecodeError as error:
        raise DamagedFile(path, f"not JSON: byte {error.start} is not UTF-8") from error
    except (RecursionError, ValueError) as error:  # also a number of thousands of digits
        raise DamagedFile(path, "not JSON that anybody meant: nested too deeply, or with a number too long") from error


def append_json_line(path: Path, record: dict[str, Any]) -> None:
    """`append_lines` of one JSON object."""
    append_lines(path, (json.dumps(record) + "\n").encode())


def append_lines(path: Path, lines: bytes) -> None:
    """Append whole lines: all of them or, if this raises OSError, none.

    Under a lock if the file system has locks, so that lines of several writers never mix."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        with contextlib.suppress(OSError):  # a mount without locks: O_APPEND alone must do
            fcntl.lockf(fd, fcntl.LOCK_EX)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            lines = b"\n" + lines  # a writer was killed inside its line: keep ours whole
        if os.write(fd, lines) < len(lines):  # the disk is full, and has taken a part
            os.ftruncate(fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)


def keep_trying(
    write: Callable[[], Result], what: str, seconds: float, ended: Callable[[], bool] = lambda: False
) -> Result:
    """Call `write` again and again while it raises an OSError of `MAY_PASS`: a full disk or a dead mount is often mended.

    Waits longer each time (1 to 15 s) and says so on stdout. `what` names what is written. Raises the last error once
    `seconds` have passed, or `ended()` says that nobody can wait any longer.
    """
    deadline, pause, failed = time.monotonic() + seconds, 1.0, False
    while True:
        try:
            result = write()
        except OSError as error:
            if error.errno not in MAY_PASS or time.monotonic() >= deadline or ended():
                raise
            if not failed:
                print(f"can't write {what}: {error}; trying again for up to {duration_text(seconds)}", flush=True)
            failed = True
        else:
            if failed:
                print(f"wrote {what}", flush=True)
            return result
        wake = min(time.monotonic() + pause, deadline)
        while (left := wake - time.monotonic()) > 0 and not ended():
            time.sleep(min(left, 0.2))
        pause = min(2 * pause, MOST_PAUSE_SECONDS)


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole JSON object in `path`, in order; half a line left by a kill is passed over. A file that is missing or
    can't be read: nothing."""
    try:
        f = open(path, "rb")  # noqa: SIM115 (a generator closes it below)
    except OSError:
        return
    with f:
        for line in f:
            if (record := _json_object(line)) is not None:
                yield record


def tail_json_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The last `count` whole JSON objects in `path`, oldest first, without reading what comes before them."""
    try:
        with open(path, "rb") as f:
            size, block = f.seek(0, os.SEEK_END), 1 << 16
            while True:
                start = max(0, size - block)
                f.seek(start)
                lines = f.read(size - start).splitlines()
                if start == 0 or len(lines) > count + 1:  # the first may be half a line
                    break
                block *= 4
    except OSError:
        return []
    records = [record for line in lines if (record := _json_object(line)) is not None]
    return records[-count:]


def sample_json_lines(path: Path, count: int) -> list[dict[str, Any]]:
    """The first, the last and at most `count` evenly spread JSON objects of `path`, in order, however long it is."""
    records = []
    try:
        with open(path, "rb") as f:
            size = f.seek(0, os.SEEK_END)
            for number in range(count):
                f.seek(size * number // count)
                if number:
                    f.readline()  # the rest of the line that we have landed in
                records.append((f.tell(), f.readline()))
    except OSError:
        return []
    lines = [line for _, line in dict(records).items()]
    sampled = [record for line in lines if (record := _json_object(line)) is not None]
    return sampled + [record for record in tail_json_lines(path, 1) if record not in sampled]


def count_bad_lines(path: Path, sound: Callable[[dict[str, Any]], bool]) -> int:
    """Lines of `path` that hold no JSON object, or one that is not `sound`. 0 if it can't be read."""
    try:
        with open(path, "rb") as f:
            return sum(
                1 for line in f if line.strip() and ((record := _json_object(line)) is None or not sound(record))
            )
    except OSError:
        return 0


def _json_object(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def fsync_folder(path: Path) -> None:
    """Make renames in `path` survive a power loss, where the file system lets a folder be synced."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(fd)
    os.close(fd)
