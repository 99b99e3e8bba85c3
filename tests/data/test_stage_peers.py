"""Nodes that serve files to each other."""

import dataclasses
import http.client
import json
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.data.stage import Stager
from harness.data.stage_peers import STALE_SECONDS, Peers, PeerServer, run_token
from harness.data.stage_plan import StageFile, plan_files
from harness.data.stage_status import StageState
from tests.data.staging import contents, staging_config, write_source
from tests.data.test_tokenizer_files import write_tokenizer


@pytest.fixture
def web(tmp_path: Path) -> Path:
    return write_source(tmp_path / "web", 3, tokens=100_000)


def planned(web: Path, node: str) -> list[StageFile]:
    """What `node` stages; each has a disk of its own."""
    scratch = web.parent / node
    return plan_files(staging_config({"web": web}, scratch), scratch)


def token_file(web: Path, node: str) -> StageFile:
    return next(file for file in planned(web, node) if file.name == "000.ds")


def stage(web: Path, node: str, peers: list[Peers] | None = None) -> Stager:
    stager = Stager(planned(web, node), web.parent / node, web.parent / f"{node}.json", peers=peers or [])
    stager.run()
    return stager


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "peers"


@pytest.fixture
def server(web: Path, folder: Path) -> Iterator[PeerServer]:
    """Node n1, which has everything."""
    stage(web, "n1")
    made = PeerServer(planned(web, "n1"), folder, "n1", "127.0.0.1", run_token(folder))
    while not (folder / "n1.json").exists():
        time.sleep(0.01)
    yield made
    made.close()


def ask(server: PeerServer, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*server.address, timeout=5)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_token_is_one_and_its_users_alone(folder: Path) -> None:
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(run_token(folder))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(found) == 8 and len(found[0]) == 64
    assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600


def test_a_node_gets_everything_from_the_one_that_has_it(web: Path, folder: Path, server: PeerServer) -> None:
    files, originals = planned(web, "n2"), contents(web)
    for path in web.iterdir():  # the shared storage loses all that it held after it was listed
        path.unlink()
    stager = Stager(files, web.parent / "n2", web.parent / "n2.json", peers=[Peers(folder, "n2", run_token(folder))])
    status = stager.run()
    assert status.state is StageState.done
    assert contents(files[0].copy.parent) == originals
    assert status.bytes_from_peers == status.bytes_wanted


def test_a_node_that_has_nothing_costs_nothing(web: Path, folder: Path) -> None:
    empty = PeerServer(planned(web, "n1"), folder, "n1", "127.0.0.1", run_token(folder))
    try:
        stager = stage(web, "n2", [Peers(folder, "n2", run_token(folder))])
    finally:
        empty.close()
    assert stager.status.state is StageState.done and stager.status.bytes_from_peers == 0
    assert not (folder / "n1.json").exists()


def test_a_node_that_is_gone_is_passed_over(web: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, port, age in (("gone", 1, 0.0), ("stale", 2, STALE_SECONDS + 1)):
        (folder / f"{name}.json").write_text(
            json.dumps({"host": "127.0.0.1", "port": port, "lease": time.time() - age})
        )
    (folder / "broken.json").write_text("{")
    peers = Peers(folder, "n2", run_token(folder))
    assert peers._some() == [("127.0.0.1", 1)]
    assert stage(web, "n2", [peers]).status.state is StageState.done
    assert peers._some() == []


def test_a_part_goes_on_at_another_node(web: Path, folder: Path, server: PeerServer) -> None:
    (file,) = [file for file in planned(web, "n2") if file.name == "001.ds"]
    with Peers(folder, "n2", run_token(folder)).open(file, 1000) as rest:
        assert rest.read() == (web / "001.ds").read_bytes()[1000:]


def test_a_file_larger_than_any_buffer_to_one_who_reads_slowly(tmp_path: Path, folder: Path) -> None:
    web = write_source(tmp_path / "web", 1, manifest=False)
    (web / "000.ds").write_bytes(os.urandom(64 << 20))
    stage(web, "n1")
    server = PeerServer(planned(web, "n1"), folder, "n1", "127.0.0.1", run_token(folder))
    while not (folder / "n1.json").exists():
        time.sleep(0.01)
    try:
        with Peers(folder, "n2", run_token(folder)).open(token_file(web, "n2"), 0) as source:
            time.sleep(0.3)
            assert source.read() == (web / "000.ds").read_bytes()
    finally:
        server.close()


def test_only_what_the_run_stages_only_with_the_token_and_only_reading(
    web: Path, folder: Path, server: PeerServer, tmp_path: Path
) -> None:
    file = token_file(web, "n1")
    path = f"/{file.copy.parent.name}/{file.name}"
    version = json.dumps([file.size, file.modified_ns, file.sha256])
    token = f"Bearer {run_token(folder)}"
    (file.copy.parent / "private").write_text("secret")
    assert ask(server, path, Authorization=token, If_Match=version) == (200, file.copy.read_bytes())
    assert ask(server, path, If_Match=version) == (403, b"")
    assert ask(server, path, Authorization="Bearer x", If_Match=version) == (403, b"")
    assert ask(server, path, Authorization=token)[0] == 404
    assert ask(server, path, Authorization=token, If_Match=json.dumps([1, 2, None]))[0] == 404
    for other in (
        f"/{file.copy.parent.name}/private",
        f"/../n1/{file.copy.parent.name}/{file.name}",
        "/",
        "/etc/passwd",
    ):
        assert ask(server, other, Authorization=token, If_Match=version)[0] == 404
    for method in ("POST", "PUT", "DELETE", "HEAD"):
        assert ask(server, path, method, Authorization=token, If_Match=version)[0] == 501
    os.truncate(file.copy, 5)  # no longer the copy that it was
    assert ask(server, path, Authorization=token, If_Match=version)[0] == 404


def test_another_version_is_not_taken(web: Path, folder: Path, server: PeerServer) -> None:
    file = dataclasses.replace(token_file(web, "n2"), sha256="0" * 64)
    with pytest.raises(OSError, match=r"no other node has 000\.ds"):
        Peers(folder, "n2", run_token(folder)).open(file, 0)


def test_files_of_one_name_in_folders_of_two_sources_are_not_mixed_up(tmp_path: Path) -> None:
    """Each has its own tokenizer; only the original of the second one is there to be seen."""
    sources = {name: write_source(tmp_path / name, 1) for name in ("web", "code")}
    for name, source in sources.items():
        write_tokenizer(source / "tokenizer", {name: 0})

    def planned_on(node: str) -> list[StageFile]:
        return plan_files(staging_config(sources, tmp_path / node), tmp_path / node)

    Stager(planned_on("n1"), tmp_path / "n1", tmp_path / "n1.json").run()
    server = PeerServer(planned_on("n1"), tmp_path / "peers", "n1", "127.0.0.1", run_token(tmp_path / "peers"))
    while not (tmp_path / "peers" / "n1.json").exists():
        time.sleep(0.01)
    try:
        peers = Peers(tmp_path / "peers", "n2", run_token(tmp_path / "peers"))
        for file in planned_on("n2"):
            with peers.open(file, 0) as answer:
                assert answer.read() == Path(file.origin).read_bytes()
    finally:
        server.close()
