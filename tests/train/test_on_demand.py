import gzip
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import harness.train.on_demand as on_demand_module
from harness.run.folder import RunFolder
from harness.train.on_demand import OnDemand, Request, parse
from tests.ranks import in_ranks

CPU = torch.device("cpu")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("POLL_SECONDS", "OTHERS_POLL_SECONDS", "NOTICE_SECONDS"):
        monkeypatch.setattr(on_demand_module, name, 0.0)
    yield


def train(on_demand: OnDemand, first: int, last: int) -> None:
    for step in range(first, last + 1):
        on_demand.step_begin(step)
        torch.ones(8, 8) @ torch.ones(8, 8)
        on_demand.step_end(step)


def files(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.profiles_dir.iterdir()) if run.profiles_dir.exists() else []


def trace(path: Path) -> list[str]:
    """Names of all events of a trace."""
    with gzip.open(path) as f:
        return [event["name"] for event in json.load(f)["traceEvents"] if "name" in event]


def steps_in(path: Path) -> list[str]:
    return [name for name in trace(path) if name.startswith("step ")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Request("profile", 3, [0])),
        ("\n", Request("profile", 3, [0])),
        ("5", Request("profile", 5, [0])),
        ("200", Request("profile", 20, [0])),
        ("all", Request("profile", 3, None)),
        ("all 2\n", Request("profile", 2, None)),
        ("ranks=8,0,8 steps=4", Request("profile", 4, [0, 8])),
        ("steps=1 ranks=all", Request("profile", 1, None)),
    ],
)
def test_what_a_request_says(text: str, expected: Request) -> None:
    assert parse("profile", text) == expected
    assert parse("memory_snapshot", "").steps == 2


@pytest.mark.parametrize(
    "text", ["0", "-3", "soon", "ranks=", "ranks=a", "ranks=-1", "rank=3", "steps=", "steps=x all"]
)
def test_what_says_nothing_sensible_is_answered(text: str) -> None:
    with pytest.raises(ValueError, match=f"profile says '{text}': write nothing, or a number of steps up to 20"):
        parse("profile", text)


def test_a_touched_file_makes_one_trace(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    on_demand = OnDemand(run, 0, CPU)
    train(on_demand, 1, 2)
    assert not run.profiles_dir.exists()
    (run.path / "profile").touch()
    train(on_demand, 3, 9)
    assert files(run) == ["step-00000003-rank-0.json.gz"]
    path = run.profiles_dir / "step-00000003-rank-0.json.gz"
    assert steps_in(path) == ["step 3", "step 4", "step 5"] and "aten::mm" in trace(path)
    assert not (run.path / "profile").exists() and (run.path / "profile.done").exists()
    out = capsys.readouterr().out.splitlines()
    assert out == [f"profile of steps 3 to 5: {path} (open it in https://ui.perfetto.dev)"]
    (run.path / "profile").write_text("1")
    train(on_demand, 10, 12)
    assert steps_in(run.profiles_dir / "step-00000010-rank-0.json.gz") == ["step 10"]


def test_the_end_of_the_run_cuts_it_short(run: RunFolder) -> None:
    on_demand = OnDemand(run, 0, CPU)
    (run.path / "profile").write_text("20")
    train(on_demand, 5, 6)
    on_demand.close()
    assert steps_in(run.profiles_dir / "step-00000005-rank-0.json.gz") == ["step 5", "step 6"]
    on_demand.close()


def test_other_ranks_hear_of_it_from_rank_0(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = {rank: OnDemand(run, rank, CPU) for rank in (0, 7, 8)}
    (run.path / "profile").write_text("ranks=8 steps=2")
    for step in range(1, 9):
        for on_demand in ranks.values():
            train(on_demand, step, step)
    assert files(run) == ["request.json", "step-00000003-rank-8.json.gz"]  # two steps after rank 0 had found it
    assert capsys.readouterr().out == "profile: ranks 8 begin with step 3\n"
    late = OnDemand(run, 8, CPU)  # sees the file long after step 3
    train(late, 50, 60)
    assert steps_in(run.profiles_dir / "step-00000050-rank-8.json.gz") == ["step 50", "step 51"]
    ranks[0].close()
    assert "request.json" not in files(run)


def test_what_a_dead_process_has_left_is_not_heard(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    first = OnDemand(run, 0, CPU)
    (run.path / "profile").write_text("all")
    train(first, 1, 1)
    OnDemand(run, 0, CPU)
    train(OnDemand(run, 1, CPU), 1, 9)
    assert files(run) == []
    monkeypatch.setattr(on_demand_module, "NOTICE_STANDS_SECONDS", 0.0)
    (run.path / "profile").write_text("ranks=1")
    again = OnDemand(run, 0, CPU)
    train(again, 1, 1)
    assert files(run) == ["request.json"]
    train(again, 2, 3)
    assert files(run) == []


def test_looks_at_most_every_so_often(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(on_demand_module.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(on_demand_module, "POLL_SECONDS", 2.0)
    monkeypatch.setattr(on_demand_module, "NOTICE_SECONDS", 15.0)
    on_demand = OnDemand(run, 0, CPU)
    (run.path / "profile").write_text("all")
    for step in range(1, 4):
        clock[0] += 0.5
        train(on_demand, step, step)
    assert (run.path / "profile").exists()
    clock[0] += 0.5
    train(on_demand, 4, 4)
    assert not (run.path / "profile").exists()
    notice = json.loads((run.profiles_dir / "request.json").read_text())
    assert (notice["first_step"], notice["ranks"]) == (4 + 30, None)  # 15 s ahead at 0.5 s a step


def test_errors_are_told_and_nothing_more(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    on_demand = OnDemand(run, 0, CPU)
    (run.path / "profile").write_text("nonsense")
    train(on_demand, 1, 1)
    (run.path / "memory_snapshot").touch()
    train(on_demand, 2, 2)
    (run.path / "profiles").write_text("in the way")
    (run.path / "profile").touch()
    train(on_demand, 3, 9)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith("rank 0: nothing recorded: profile says 'nonsense': write nothing")
    assert second == "rank 0: nothing recorded: memory_snapshot needs a GPU: it records the GPU's allocations"
    assert third.startswith("rank 0: nothing recorded: ") and "profiles" in third
    (run.path / "profiles").unlink()
    (run.path / "profile").touch()
    train(on_demand, 10, 13)  # and the next one works
    assert files(run) == ["step-00000010-rank-0.json.gz"]


def test_a_file_that_can_not_be_taken_is_told_once(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path / "profile").touch()
    (run.path / "profile.done").mkdir()
    train(OnDemand(run, 0, CPU), 1, 5)
    assert capsys.readouterr().out.count("nothing recorded") == 1


def test_a_full_disk_leaves_no_half_trace(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (run.path / "profile").touch()
    monkeypatch.setattr("harness.train.recorders.shutil.copyfileobj", full)
    train(OnDemand(run, 0, CPU), 1, 5)
    assert files(run) == []
    assert "rank 0: nothing recorded: [Errno 28] No space left on device" in capsys.readouterr().out


def test_memory_snapshot_of_a_gpu(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU torch's part is only watched: recording is switched on, written once, and switched off."""
    calls: list[Any] = []

    def dump(path: str) -> None:
        calls.append("dump")
        Path(path).write_bytes(pickle.dumps({"segments": []}))

    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda enabled, **_: calls.append(enabled))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", dump)
    (run.path / "memory_snapshot").touch()
    train(OnDemand(run, 0, torch.device("cuda")), 4, 8)
    assert calls == ["all", "dump", None]
    assert files(run) == ["step-00000004-rank-0-memory.pickle"]


def _train_together(rank: int, world_size: int, folder: Path) -> None:
    run = RunFolder(folder)
    on_demand_module.POLL_SECONDS = on_demand_module.OTHERS_POLL_SECONDS = on_demand_module.NOTICE_SECONDS = 0.0
    on_demand = OnDemand(run, rank, CPU)
    for step in range(1, 9):
        dist.barrier()
        if rank == 0 and step == 2:
            (run.path / "profile").write_text("all")
        train(on_demand, step, step)
    dist.barrier()
    on_demand.close()


def test_all_ranks_record_the_same_steps(tmp_path: Path) -> None:
    in_ranks(_train_together, 2, tmp_path)
    run = RunFolder(tmp_path)
    assert files(run) == ["step-00000004-rank-0.json.gz", "step-00000004-rank-1.json.gz"]
    for rank in range(2):
        assert steps_in(run.profiles_dir / f"step-00000004-rank-{rank}.json.gz") == ["step 4", "step 5", "step 6"]
