"""What an agent does about its node's data before and while ranks train."""

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.agent import data as module
from harness.agent.data import NodeData, Unready
from harness.config.schema import Packing, SourceConfig, StageWhen
from harness.data.order import open_order
from harness.data.stage_paths import StagedFiles
from harness.data.stage_status import StageState
from harness.run.attempt import Attempt, claim
from harness.run.files import write_json
from harness.run.folder import RunFolder
from harness.run.node import Node
from tests.tiny import tiny_run, write_tokens
from tests.waiting import wait_for


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(module, "OTHERS_SECONDS", 0.5)


Make = Callable[..., NodeData]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """The data of node n1, in a run whose config has these changes."""
    made: list[NodeData] = []

    def start(nodes: tuple[str, ...] = ("n1",), **changes: Any) -> NodeData:
        run = tiny_run(tmp_path, **changes)
        attempt = claim(run, "7.0", "7", list(nodes), "127.0.0.1", 1)
        made.append(NodeData(run.load_config(), run, attempt, node("n1", nodes)))
        return made[-1]

    yield start
    for data in made:
        data.close()


def node(name: str, nodes: tuple[str, ...]) -> Node:
    return Node(name, "127.0.0.1", nodes.index(name), list(nodes), "7", 0, on_slurm=False)


def run_of(data: NodeData) -> RunFolder:
    return data._run


def events(data: NodeData, name: str) -> list[dict[str, Any]]:
    return [event for event in run_of(data).events() if event["event"] == name]


def written(data: NodeData, name: str) -> dict[str, Any]:
    """The one event of this name, which the stager writes a moment after its last status."""
    wait_for(lambda: events(data, name), name, 10)
    (event,) = events(data, name)
    return event


def prepare(data: NodeData) -> Unready | None:
    return data.prepare(lambda: False)


def poll_until_over(data: NodeData) -> StageState:
    deadline = time.monotonic() + 20
    while not (status := data.poll()).over:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status.state


def test_nothing_to_stage(make: Make) -> None:
    data = make()
    assert prepare(data) is None
    assert run_of(data).events() == []


def test_ranks_start_when_all_is_there(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"))
    assert prepare(data) is None
    original = tmp_path / "tokens" / "000.ds"
    assert StagedFiles(tmp_path / "scratch", [original]).path(original) != str(original)
    start, done = written(data, "stage_start"), written(data, "stage_done")
    assert (start["stage_to"], start["when"], start["node"]) == (str(tmp_path / "scratch"), "before", "n1")
    assert done["bytes"] == sum(path.stat().st_size for path in original.parent.iterdir()) and done["seconds"] >= 0
    assert (start["attempt"], done["attempt"]) == (0, 0)


@pytest.mark.parametrize(("scheme", "when"), [("", "before"), ("", "while_training"), ("file://", "before")])
def test_packing_tables_are_staged_so_that_ranks_pack_nothing(
    make: Make, tmp_path: Path, scheme: str, when: str
) -> None:
    """As after a launch: it has packed the source, beside the tokens or, for a URL, in the cache that all nodes see."""
    source = {"web": SourceConfig(path=f"{scheme}{write_tokens(tmp_path / 'tokens')}")}
    data = make(data__stage_to=str(tmp_path / "scratch"), data__stage_when=StageWhen(when), data__sources=source,
                data__packing=Packing.best_fit, data__packing_cache=str(tmp_path / "packing"))  # fmt: skip
    config = run_of(data).load_config()
    planned = open_order(config.data, 8, outlines=True)
    (table,) = [*tmp_path.glob("tokens/best_fit-*"), *tmp_path.glob("packing/best_fit-*")]
    assert (table.parent.name == "packing") == bool(scheme)
    assert prepare(data) is None
    assert poll_until_over(data) is StageState.done
    data.close()
    shutil.rmtree(table)
    order = open_order(config.data, 8, build=False)
    assert order.definition() == planned.definition()
    assert order.windows[0].pieces(3) == planned.windows[0].pieces(3)


def test_while_training_nobody_waits(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"), data__stage_when=StageWhen.while_training,
                data__stage_bytes_per_second=1.0)  # fmt: skip
    assert prepare(data) is None
    assert not data.poll().over
    data.close()


def test_a_stager_that_is_killed_is_started_again(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"), data__stage_when=StageWhen.while_training)
    prepare(data)
    assert data._stager is not None
    os.kill(data._stager.pid, signal.SIGKILL)
    assert poll_until_over(data) is StageState.done
    assert written(data, "stage_done")["state"] == "done"


def test_a_stager_that_can_not_work_ends_the_attempt_and_says_why(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    data = make(data__stage_to=str(tmp_path / "file" / "scratch"))
    unready = prepare(data)
    assert unready is not None and "node n1: staging failed: the stager ended with status 2" in unready.why
    failed = written(data, "stage_failed")
    assert f"data.stage_to={tmp_path}/file/scratch: can't write there" in failed["why"]


def test_a_damaged_file_is_named_with_its_node(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"))
    (tmp_path / "tokens" / "manifest.json").write_text(json.dumps({"files": [{"name": "000.ds", "sha256": "0" * 64}]}))
    unready = prepare(data)
    assert unready is not None
    assert unready.why.startswith(
        f"node n1: staging failed: {tmp_path}/tokens/000.ds (read from the original) does not"
    )
    failed = written(data, "stage_failed")
    assert "does not have the sha256" in failed["why"]


def test_no_room_is_told_and_the_run_goes_on(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"), data__stage_keep_free_bytes=1 << 60)
    assert prepare(data) is None
    done = written(data, "stage_done")
    assert done["files_left"] == 2 and done["bytes_missing"] > 0 and "data.stage_keep_free_bytes" in done["why"]


def test_a_path_that_can_not_be_read_is_named_with_the_node(make: Make, tmp_path: Path) -> None:
    data = make(("n1", "n2"))
    os.rename(tmp_path / "tokens", tmp_path / "gone")
    unready = prepare(data)
    what = f"node n1: data.sources.web.path={tmp_path}/tokens cannot be read: No such file or directory"
    assert unready == Unready(what)
    assert [event["why"] for event in events(data, "data_unreadable")] == [what]
    assert run_of(data).excluded_nodes() == {}  # nobody says that it is this node's fault


def report(data: NodeData, name: str, problem: str | None) -> None:
    """As the agent of another node would."""
    attempt: Attempt = data._attempt
    write_json(run_of(data).attempt_dir(attempt.number) / f"{name}.data.json", {"problem": problem})


@pytest.mark.parametrize("word", ["", None])
def test_a_node_that_alone_can_not_read_stays_out_of_the_run(make: Make, tmp_path: Path, word: str | None) -> None:
    """Whether the other one has all its copies or only begins to make them."""
    data = make(("n1", "n2"))
    report(data, "n2", word)
    os.rename(tmp_path / "tokens", tmp_path / "gone")
    assert prepare(data) is not None
    assert list(run_of(data).excluded_nodes()) == ["n1"]
    assert [event["lost"] for event in events(data, "node_excluded")] == ["n1"]


def test_all_nodes_start_together(make: Make, tmp_path: Path) -> None:
    data = make(("n1", "n2"), data__stage_to=str(tmp_path / "scratch"), data__stage_from_peers=False)
    found: list[Unready | None] = []
    thread = threading.Thread(target=lambda: found.append(prepare(data)))
    thread.start()
    # its stager writes that, and then waits for whoever wants its files
    wait_for(lambda: events(data, "stage_done"), "the node has its copies", 20)
    report(data, "n2", None)
    thread.join(0.3)
    assert thread.is_alive()
    report(data, "n2", "")
    thread.join(10)
    assert found == [None]


def test_a_node_whose_staging_has_failed_ends_all(make: Make, tmp_path: Path) -> None:
    data = make(("n1", "n2"), data__stage_to=str(tmp_path / "scratch"), data__stage_from_peers=False)
    report(data, "n2", "node n2: staging failed: planted")
    assert prepare(data) == Unready("node n2: staging failed: planted")


def test_being_told_to_end_ends_the_wait(make: Make, tmp_path: Path) -> None:
    data = make(data__stage_to=str(tmp_path / "scratch"), data__stage_bytes_per_second=1.0)
    until = time.monotonic() + 1.0
    assert data.prepare(lambda: time.monotonic() > until) is None
    assert not events(data, "stage_done")


def test_nodes_exchange_files(make: Make, tmp_path: Path) -> None:
    """A second node, with a disk of its own, gets all from the first one and nothing from shared storage."""
    first = make(("n1", "n2"), data__stage_to=str(tmp_path / "scratch"))
    config = first._config
    report(first, "n2", "")
    assert prepare(first) is None
    config.data.stage_to = str(tmp_path / "scratch2")
    run_of(first).save_config(config)
    second = NodeData(config, run_of(first), first._attempt, node("n2", ("n1", "n2")))
    try:
        assert second.prepare(lambda: False) is None
    finally:
        second.close()
    while len(events(first, "stage_done")) < 2:
        time.sleep(0.02)
    done = {event["node"]: event for event in events(first, "stage_done")}
    assert done["n1"]["bytes_from_peers"] == 0
    assert done["n2"]["bytes_from_peers"] == done["n2"]["bytes"] > 0


def test_what_the_other_nodes_must_know_is_said_once_there_is_room(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = make()
    with monkeypatch.context() as patched:
        patched.setattr(module, "write_json", full)
        assert prepare(data) is None
        data.poll()
    record = run_of(data).attempt_dir(0) / "n1.data.json"
    assert not record.exists() and capsys.readouterr().out.count("could not write") == 1
    data.poll()
    assert json.loads(record.read_text())["problem"] is None


def test_a_node_that_can_not_be_excluded_on_a_full_disk_still_says_what_is_wrong(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: RunFolder, name: str, why: str) -> bool:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data = make(nodes=("n1", "n2"))
    shutil.rmtree(tmp_path / "tokens")
    write_json(run_of(data).attempt_dir(0) / "n2.data.json", {"time": 0.0, "problem": None})
    monkeypatch.setattr(RunFolder, "exclude_node", full)
    unready = prepare(data)
    assert unready is not None and "tokens" in unready.why
    assert events(data, "node_excluded") == [] and len(events(data, "data_unreadable")) == 1
