"""Ends that are no success: each with its exit code, an event, and nothing lost."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import harness.train.loop as loop_module
from harness.checkpoint.folders import complete_steps
from harness.config.schema import NonFinitePolicy, SourceConfig
from harness.observe.board import Activity, Board, RankState, board_path
from harness.run import exit_codes as codes
from harness.run.folder import RunFolder
from harness.train.setup import Trainer, open_data, start_loader
from tests.filling import full_disk
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run, write_tokens
from tests.train.conftest import state_of, train, trainers_of


def plant_nan(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> list[Trainer]:
    """Make what the loss is computed from NaN in these steps, as a bad batch would."""

    def plant(trainer: Trainer) -> None:
        trainer.stepper.model.stages[-1].lm.model.norm.register_forward_hook(
            lambda module, args, out: out * float("nan") if trainer.step + 1 in steps else out
        )

    return trainers_of(monkeypatch, plant)


def test_a_step_that_is_not_finite_is_skipped(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainers = plant_nan(monkeypatch, {3})
    constant = {"schedule__warmup_steps": 0, "schedule__decay_steps": 0}  # the same rates however long the run
    run = tiny_run(tmp_path, data=data, steps=3, **constant)
    assert train(run) == codes.OK
    board = Board.open_for_read(board_path(alone, 0))
    assert (board.get("nonfinite_total"), board.get("skipped_total")) == (1, 1)
    assert [(e["event"], e["step"], e.get("reason")) for e in run.events()][2:4] == [
        ("skip", 3, "not finite"),
        ("checkpoint", 3, None),
    ]
    last = run.metrics()[-1]
    assert (last["step"], last["loss"], last["skipped"]) == (3, None, "not finite")
    assert train(tiny_run(tmp_path, name="shorter", data=data, steps=2, **constant)) == codes.OK
    after_skip, before_skip = map(state_of, trainers)
    for name, tensor in before_skip.items():  # as they were after step 2
        assert torch.equal(after_skip[name], tensor), name
    assert after_skip["optim.model.norm.weight.step"].item() == 2


def test_policy_stop_ends_the_run_at_once(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant_nan(monkeypatch, {2})
    run = tiny_run(tmp_path, data=data, steps=5, train__nonfinite=NonFinitePolicy.stop)
    assert train(run) == codes.NONFINITE
    assert "train.nonfinite=stop" in capsys.readouterr().out
    end = run.events()[-1]
    assert (end["event"], end["step"], end["loss"]) == ("nonfinite", 2, "nan")


def test_too_many_in_a_row_end_the_run_but_not_as_many_apart(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_nan(monkeypatch, {1, 3, 5, 6})
    run = tiny_run(tmp_path, data=data, steps=9, train__max_nonfinite=2)
    assert train(run) == codes.NONFINITE
    ends = [(e["event"], e["step"], e["in_a_row"]) for e in run.events() if e["event"] in ("skip", "nonfinite")]
    assert ends == [("skip", 1, 1), ("skip", 3, 1), ("skip", 5, 1), ("nonfinite", 6, 2)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__rope_theta": 5e5}, "model.rope_theta: 10000.0 in the checkpoint, 500000.0 now"),
        ({"model__no_rope_layer_interval": 2}, "model.no_rope_layer_interval: 4 in the checkpoint, 2 now"),
        ({"data__seed": 9}, "data.seed: 0 in the checkpoint, 9 now"),
        ({"train__global_batch_size": 4}, "data.global_batch_size: 8 in the checkpoint, 4 now"),
    ],
    ids=["rope", "model", "data", "batch"],
)
def test_a_changed_run_is_not_resumed(
    changes: dict[str, int],
    message: str | None,
    alone: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tiny_run(tmp_path, data=data, steps=1)
    assert train(run) == codes.OK
    before = sorted(path.name for path in run.checkpoints_dir.iterdir())
    tiny_run(tmp_path, data=data, steps=4, **changes)
    assert train(run) == codes.CONFIG
    printed = capsys.readouterr().out
    assert message in printed
    assert "Set these keys back, or start a new run" in printed
    assert sorted(path.name for path in run.checkpoints_dir.iterdir()) == before


def test_sources_in_another_order_are_another_run(
    alone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path, data=data, steps=1)
    config = run.load_config()
    web, more = config.data.sources["web"], SourceConfig(path=str(write_tokens(tmp_path / "more")))
    config.data.sources, config.data.stages[0].weights = {"web": web, "more": more}, {"web": 0.5, "more": 0.5}
    run.save_config(config)
    assert train(run) == codes.OK
    config.data.sources = {"more": more, "web": web}
    run.save_config(config)
    assert train(run) == codes.CONFIG
    assert "data.sources_in_order: web, more in the checkpoint, more, web now" in capsys.readouterr().out


def test_missing_data_and_folder_are_named(
    alone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path, data=data)
    config = run.load_config()
    config.data.sources["web"].path = str(tmp_path / "nowhere")
    run.save_config(config)
    assert train(run) == codes.CONFIG
    assert f"data.sources.web.path={tmp_path / 'nowhere'}" in capsys.readouterr().out
    assert train(RunFolder(tmp_path / "no-run")) == codes.CONFIG
    assert "is not a run folder" in capsys.readouterr().out


def test_layout_that_does_not_fit_the_ranks_is_named(
    alone: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(tmp_path, data=data, parallel__tp=2)
    assert train(run) == codes.CONFIG
    assert "do not multiply to the 1 ranks" in capsys.readouterr().out


def test_an_older_attempt_does_not_go_on(data: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=5000, checkpoint__every_steps=5000)
    run.attempt_dir(2).mkdir()
    assert exit_codes(start_trainers(run.path, 1, tmp_path, attempt=1)) == [codes.FENCED]
    ranks = start_trainers(run.path, 2, tmp_path, attempt=2)
    while not run.metrics():
        assert all(rank.is_alive() for rank in ranks)
    run.attempt_dir(3).mkdir()
    assert exit_codes(ranks) == [codes.FENCED, codes.FENCED]
    assert list(run.checkpoints_dir.iterdir()) == []


def test_disk_full_while_saving_is_survived_and_tried_again(data: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=4000, checkpoint__every_steps=3)
    ranks = start_trainers(run.path, 2, tmp_path)
    assert ranks[1].pid is not None
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    while not [event for event in run.events() if event["event"] == "checkpoint_failed"]:
        assert all(rank.is_alive() for rank in ranks)
    resource.prlimit(ranks[1].pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    while not [event for event in run.events() if event["event"] == "checkpoint"]:
        assert all(rank.is_alive() for rank in ranks)
    Board.open_for_read(board_path(tmp_path, 0)).set("stop_request", 1.0)
    assert exit_codes(ranks) == [0, 0]
    failed = next(event for event in run.events() if event["event"] == "checkpoint_failed")
    assert "rank 1" in failed["reason"] and "File too large" in failed["reason"] and failed["step"] == 3
    for rank in range(2):
        assert Board.open_for_read(board_path(tmp_path, rank)).get("ckpt_failures_total") >= 1
    assert list(losses(run)) == list(range(1, len(losses(run)) + 1))


def test_last_checkpoint_on_a_full_disk_is_an_error_that_says_so(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop_module, "LAST_SAVE_SECONDS", 0.0)
    run = tiny_run(tmp_path, data=data, steps=2)
    with full_disk(run.checkpoints_dir, kilobytes=400) as disk:
        assert train(run) == codes.DISK_FULL
        assert list(disk.folder.iterdir()) == []
    printed = capsys.readouterr().out
    assert "checkpoint of step 2, the last of this process, could not be written" in printed
    assert "No space left on device" in printed and f"Make room in {run.checkpoints_dir}" in printed
    assert len(losses(run)) == 2


def test_last_checkpoint_waits_for_room(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all ranks, with the agent told that this is no hang and the alerts that this is a planned pause."""
    run = tiny_run(tmp_path, data=data, steps=2)
    seen: list[tuple[float, float]] = []
    with full_disk(run.checkpoints_dir, kilobytes=400) as disk:

        def wait(seconds: float) -> None:
            board = Board.open_for_read(board_path(alone, 0))
            seen.append((board.get("activity"), board.get("planned_pause")))
            disk.grow()

        monkeypatch.setattr(loop_module.time, "sleep", wait)
        assert train(run) == codes.OK
        assert complete_steps(disk.folder) == [2]
    assert seen == [(Activity.saving, 1.0)]
    assert [e["event"] for e in run.events()][-3:] == ["checkpoint_failed", "checkpoint", "finished"]


def test_a_run_that_was_asked_to_stop_stops_without_its_checkpoint(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time limit comes whether the disk is full or not: ended in order, the job starts again."""
    monkeypatch.setattr(loop_module, "LAST_SAVE_SECONDS", 0.0)
    run = tiny_run(tmp_path, data=data, steps=200)
    trainers_of(monkeypatch, lambda trainer: trainer.board.set("stop_request", 1.0))
    with full_disk(run.checkpoints_dir, kilobytes=400):
        assert train(run) == codes.OK
    stopped = run.events()[-1]
    assert stopped["event"] == "stopped" and "No space left on device" in stopped["why"]
    assert Board.open_for_read(board_path(alone, 0)).get("state") == RankState.stopped


def test_the_board_says_what_a_rank_is_at(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, float]] = []
    begin = Board.begin

    def watched(board: Board, activity: Activity) -> None:
        begin(board, activity)
        now = (activity.name, board.get("planned_pause"))
        if seen[-1:] != [now]:
            seen.append(now)

    monkeypatch.setattr(Board, "begin", watched)
    run = tiny_run(
        tmp_path, data=data, steps=5, checkpoint__every_steps=4, train__eval_every=2, train__eval_sequences=4,
        data__validation={"held": SourceConfig(path=str(write_tokens(tmp_path / "held")))},
    )  # fmt: skip
    assert train(run) == codes.OK
    assert seen[:5] == [
        ("starting", 0.0),
        ("restoring", 1.0),
        ("waiting_for_data", 1.0),
        ("compiling", 1.0),
        ("waiting_for_data", 1.0),
    ]
    validated = [number for number, (name, _) in enumerate(seen) if name == "validating"]
    assert seen[validated[0] - 1] == ("compiling", 1.0)  # the first batch; later validations have nothing to compile
    assert [seen[number - 1][0] for number in validated[1:]] == ["stepping", "stepping"]
    assert ("saving", 1.0) in seen and {pause for name, pause in seen if name in ("saving", "validating")} == {1.0}


def test_a_listing_that_fails_for_a_while_ends_nothing(
    data: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking for a newer attempt on a mount that has gone stale."""
    run = tiny_run(tmp_path, data=data, steps=6, checkpoint__every_steps=3)
    looks = []

    def stale(run: RunFolder) -> int | None:
        looks.append(1)
        if 1 < len(looks) < 4:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return None

    monkeypatch.setattr(loop_module, "FENCE_SECONDS", 0.0)
    monkeypatch.setattr(RunFolder, "newest_attempt", stale)
    assert train(run) == codes.OK
    assert len(looks) > 4 and list(losses(run)) == [1, 2, 3, 4, 5, 6]


def test_start_up_imports_no_more_than_it_needs() -> None:
    heavy = ("datasets", "datatrove", "pandas", "pyarrow", "torch._inductor.compile_fx", "prometheus_client", "hydra")
    code = f"import sys, harness.train.rank; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_data_that_can_no_longer_be_read_ends_the_run_and_names_the_file(
    alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(
        tmp_path,
        data__hedge_seconds=0.2,
        data__read_timeout_seconds=0.2,
        data__give_up_seconds=0.4,
        checkpoint__every_steps=1,
    )
    (shard,) = (tmp_path / "tokens").glob("*.ds")

    def lose(trainer: Trainer) -> None:
        trainer.loader.close()
        data = open_data(trainer.config)
        shard.rename(tmp_path / "away")
        trainer.loader = start_loader(
            trainer.config, data, trainer.grid, 0, 0, trainer.board, trainer.reports.ledger, trainer.device
        )

    trainers_of(monkeypatch, lose)
    assert train(run) == codes.CONFIG
    assert f"{shard}: No such file or directory" in capsys.readouterr().out
    lost = [event for event in run.events() if event["event"] == "data_lost"]
    assert len(lost) == 1 and str(shard) in lost[0]["why"] and lost[0]["step"] == 0
