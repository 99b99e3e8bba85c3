"""Nodes that fetch staged files from each other: who has joined, the read-only server of each, and asking one of them.

RUN/peers/
  token          the run's secret, for its user's eyes only: it goes in a header, never in a log or on a command line
  NODE.json      where the node's server listens, renewed while it does
"""

import contextlib
import hmac
import http.client
import json
import os
import random
import re
import secrets
import socket
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, cast

from harness.data.stage_copy import is_staged
from harness.data.stage_plan import StageFile
from harness.run.files import read_json, write_json

RENEW_SECONDS = 5.0
STALE_SECONDS = 30.0
LOOK_SECONDS = 5.0
"""How often a node looks who else is there."""
TIMEOUT_SECONDS = 20.0
AVOID_SECONDS = 60.0
"""A node that did not answer is left alone for so long."""
ASKED = 4
"""Nodes that are asked for one file."""
TOKEN_BYTES = 32
MOST_CLIENTS = 16


def peers_dir(run: Path) -> Path:
    """Where the nodes of a run find each other."""
    return run / "peers"


def run_token(folder: Path) -> str:
    """The run's secret, made by whoever asks first. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "token"
    with contextlib.suppress(FileExistsError):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(fd, "w") as file:
            file.write(secrets.token_hex(TOKEN_BYTES))
    deadline = time.monotonic() + RENEW_SECONDS
    while len(token := path.read_text()) != 2 * TOKEN_BYTES:  # another node is about to write it
        if time.monotonic() > deadline:
            raise OSError(f"{path} holds no token; remove it")
        time.sleep(0.05)
    return token


class PeerServer:
    """Serves this node's complete copies of `files` to whoever knows the token, until `close`. GET and nothing else."""

    def __init__(
        self, files: Iterable[StageFile], folder: Path, node: str, address: str, token: str, port: int = 0
    ) -> None:
        """Listen on `address` alone and register in `folder`. Raises OSError."""
        by_name = {_url_path(file): file for file in files}
        self._server = _Server((address, port), token, by_name)
        self._path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', node)}.json"
        self._stop = threading.Event()
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="peer-http", daemon=True).start()
        self._renewing = threading.Thread(target=self._renew, name="peer-lease", daemon=True)
        self._renewing.start()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port that are listened on."""
        host, port = self._server.server_address[:2]
        return str(host), port

    def close(self) -> None:
        """Withdraw, then stop."""
        self._stop.set()
        self._renewing.join(timeout=RENEW_SECONDS)
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()

    def _renew(self) -> None:
        host, port = self.address
        while not self._stop.is_set():
            with contextlib.suppress(OSError):  # a full disk: the others do without us
                write_json(self._path, {"host": host, "port": port, "lease": time.time()})
            self._stop.wait(RENEW_SECONDS)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], token: str, files: dict[str, StageFile]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.token, self.files = token, files
        self.places = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # HTTPServer would ask the DNS for the host's full name, which can take many seconds on a compute node
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()


class _Handler(BaseHTTPRequestHandler):
    timeout = TIMEOUT_SECONDS
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        server = cast(_Server, self.server)
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {server.token}".encode()):
            return self._refuse(HTTPStatus.FORBIDDEN)
        file = server.files.get(self.path)
        if file is None or self.headers.get("If-Match") != _version(file) or not is_staged(file):
            return self._refuse(HTTPStatus.NOT_FOUND)
        if not server.places.acquire(blocking=False):
            return self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
        try:
            self._send(file)
        finally:
            server.places.release()

    def log_message(self, format: str, *args: object) -> None:
        """The stager's log is for people."""

    def _refuse(self, status: HTTPStatus) -> None:
        self.send_response_only(status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _send(self, file: StageFile) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))
        begin = min(int(match[1]), file.size) if match else 0
        with open(file.copy, "rb") as copy, contextlib.suppress(ConnectionError, TimeoutError):
            self.send_response_only(HTTPStatus.PARTIAL_CONTENT if begin else HTTPStatus.OK)
            self.send_header("Content-Length", str(file.size - begin))
            self.end_headers()
            self.wfile.flush()
            if begin < file.size:
                self.connection.sendfile(copy, begin, file.size - begin)


class Peers:
    """An origin for staging: the other nodes of the run, a few of them asked at random."""

    name = "another node"

    def __init__(self, folder: Path, node: str, token: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder, self._token, self._clock = folder, token, clock
        self._own = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', node)}.json"
        self._lock = threading.Lock()
        self._known: list[tuple[str, int]] = []
        self._look_at = float("-inf")
        self._avoid: dict[tuple[str, int], float] = {}

    def open(self, file: StageFile, offset: int) -> BinaryIO:
        """Raises OSError where none of those asked has it."""
        for peer in self._some():
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer = self._ask(peer, file, offset)
                if answer is not None:
                    return answer
                continue
            self._avoid[peer] = self._clock() + AVOID_SECONDS
        raise FileNotFoundError(f"no other node has {file.name}")

    def _some(self) -> list[tuple[str, int]]:
        with self._lock:
            now = self._clock()
            if now >= self._look_at:
                self._known, self._look_at = list(self._others()), now + LOOK_SECONDS
            peers = [peer for peer in self._known if self._avoid.get(peer, 0.0) <= now]
        return random.sample(peers, min(ASKED, len(peers)))

    def _others(self) -> Iterable[tuple[str, int]]:
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                record = read_json(path)
                if path.name != self._own and record and time.time() - record["lease"] < STALE_SECONDS:
                    yield str(record["host"]), int(record["port"])

    def _ask(self, peer: tuple[str, int], file: StageFile, offset: int) -> BinaryIO | None:
        """The file from `offset` on; None where this node does not have it. Raises OSError or HTTPException."""
        connection = http.client.HTTPConnection(*peer, timeout=TIMEOUT_SECONDS)
        headers = {
            "Authorization": f"Bearer {self._token}",
            "If-Match": _version(file),
            "Range": f"bytes={offset}-",
        }
        connection.request("GET", _url_path(file), headers=headers)
        answer = connection.getresponse()
        wanted = HTTPStatus.PARTIAL_CONTENT if offset else HTTPStatus.OK
        if answer.status != wanted or answer.length != file.size - offset:
            connection.close()
            return None
        return cast(BinaryIO, answer)  # it keeps the socket for itself until it is closed


def _url_path(file: StageFile) -> str:
    """`/FOLDER/NAME` below the stage folder, the same on every node."""
    return urllib.parse.quote(f"/{file.folder.name}/{file.name}")


def _version(file: StageFile) -> str:
    """What both sides must agree on before bytes are sent."""
    return json.dumps([file.size, file.modified_ns, file.sha256])
