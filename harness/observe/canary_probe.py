"""The canary's own process: makes the small timed reads that may hang, so that the agent never does.

Runs as a plain file under `python -I -S` and imports only what it needs, to stay near 10 MB. Reads one JSON request per
line on stdin ({"id", "kind", "path"}) and answers each on stdout with {"id", "seconds"} or {"id", "errno", "error"}. Each
id has a thread of its own, so a probe that hangs stops no other. Ends when stdin does, or with its parent.
"""

import contextlib
import ctypes
import errno
import json
import mmap
import os
import queue
import random
import signal
import sys
import threading
import time

READ_BYTES = 4096
PR_SET_PDEATHSIG = 1
hot_files: set[str] = set()
"""Files made here, to be removed at the end."""


def read_hot(path: str) -> float:
    """Seconds to read a small private file past the page cache; makes the file where there is none."""
    try:
        return _read_direct(path)
    except FileNotFoundError:
        _make(path)
        return _read_direct(path)


def read_cold(path: str) -> float:
    """Seconds to read 4 KiB at a random place of a data file, dropped from the page cache first."""
    fd = os.open(path, os.O_RDONLY)
    try:
        pages = os.fstat(fd).st_size // READ_BYTES
        offset = random.randrange(pages) * READ_BYTES if pages else 0
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead beyond these 4 KiB
        os.posix_fadvise(fd, offset, READ_BYTES, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        os.pread(fd, READ_BYTES, offset)
        return time.perf_counter() - start
    finally:
        os.close(fd)


def read_meta(path: str) -> float:
    """Seconds to open a file and ask for its size."""
    start = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fstat(fd)
        return time.perf_counter() - start
    finally:
        os.close(fd)


PROBES = {"hot": read_hot, "cold": read_cold, "meta": read_meta}


def _read_direct(path: str) -> float:
    buffer = mmap.mmap(-1, READ_BYTES)  # O_DIRECT wants an aligned buffer; a mapping begins on a page
    try:
        return _timed_read(path, os.O_DIRECT, buffer)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return _timed_read(path, 0, buffer)  # this file system has no O_DIRECT
    finally:
        buffer.close()


def _timed_read(path: str, flag: int, buffer: mmap.mmap) -> float:
    fd = os.open(path, os.O_RDONLY | flag)
    try:
        if not flag:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        count = os.preadv(fd, [buffer], 0)
        seconds = time.perf_counter() - start
    finally:
        os.close(fd)
    if count < READ_BYTES:  # cut short by somebody: make it anew next time
        os.unlink(path)
        raise OSError(errno.EIO, f"only {count} bytes", path)
    return seconds


def _make(path: str) -> None:
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(fd, os.urandom(READ_BYTES))
            os.fsync(fd)  # dirty pages can't be dropped from the cache
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    hot_files.add(path)


def _serve(requests: "queue.SimpleQueue[dict[str, str]]") -> None:
    while True:
        request = requests.get()
        answer: dict[str, object] = {"id": request["id"]}
        try:
            answer["seconds"] = PROBES[request["kind"]](request["path"])
        except OSError as error:
            answer |= {"errno": error.errno, "error": str(error)}
        os.write(1, (json.dumps(answer) + "\n").encode())  # one write: answers of several threads never mix


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)


def _remove_hot_files() -> None:
    for path in hot_files:
        with contextlib.suppress(OSError):
            os.unlink(path)


def main() -> None:
    """Serve until stdin ends. argv[1] is the parent's process id."""
    _die_with(int(sys.argv[1]))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)  # meant for the job; this process ends with its agent
    queues: dict[str, queue.SimpleQueue[dict[str, str]]] = {}
    for line in sys.stdin.buffer:
        request = json.loads(line)
        if request["id"] not in queues:
            queues[request["id"]] = queue.SimpleQueue()
            threading.Thread(target=_serve, args=(queues[request["id"]],), daemon=True).start()
        queues[request["id"]].put(request)
    remover = threading.Thread(target=_remove_hot_files, daemon=True)
    remover.start()
    remover.join(timeout=1.0)  # the mount may hang
    os._exit(0)  # threads that hang must not keep the process


if __name__ == "__main__":
    main()
