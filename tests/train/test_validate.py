"""Validations of a run: when they come, and how they end it. That every layout finds the same: tests/parallel/test_layouts.py."""

import math
from pathlib import Path

import pytest

from harness.config.schema import SourceConfig
from harness.observe.board import Board, RankState, board_path
from harness.run import exit_codes as codes
from harness.run.folder import RunFolder
from tests.tiny import VOCAB, losses, tiny_run, write_tokens
from tests.train.conftest import state_of, train, trainers_of

HELD_OUT = {"train__eval_every": 2, "train__eval_sequences": 6}
CONSTANT = {"schedule__decay_steps": 0}


@pytest.fixture
def held_out(tmp_path: Path) -> dict[str, SourceConfig]:
    return {"held": SourceConfig(path=str(write_tokens(tmp_path / "held")))}


def change(run: RunFolder, **train_keys: object) -> None:
    config = run.load_config()
    for key, value in train_keys.items():
        setattr(config.train, key, value)
    run.save_config(config)


def validations(run: RunFolder) -> dict[int, float]:
    lines = run.validations()
    assert all(line["tokens"] == line["step"] * 8 * 64 and line["seconds"] > 0 for line in lines)
    return {line["step"]: line["loss"] for line in lines}


def test_validating_changes_no_bit_of_training(
    alone: Path, data: Path, held_out: dict[str, SourceConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trainers_of(monkeypatch)
    plain = tiny_run(tmp_path, name="plain", data=data, steps=5, **CONSTANT)
    assert train(plain) == codes.OK
    run = tiny_run(tmp_path, data=data, steps=5, data__validation=held_out, **HELD_OUT, **CONSTANT)
    assert train(run) == codes.OK
    assert losses(run) == losses(plain)
    expected, found = map(state_of, seen)
    assert all((found[name] == tensor).all() for name, tensor in expected.items())
    by_step = validations(run)
    assert list(by_step) == [2, 4, 5], "at the cadence, and at the end"
    assert math.log(VOCAB) + 0.1 > by_step[2] > by_step[4] > by_step[5]


def test_early_stop_ends_the_run_for_good_and_counts_across_restarts(
    alone: Path, data: Path, held_out: dict[str, SourceConfig], tmp_path: Path
) -> None:
    settings = {**HELD_OUT, "train__early_stop_evals": 2, "optim__lr": 0.0}  # learns nothing: no loss is a new low
    run = tiny_run(tmp_path, data=data, steps=4, data__validation=held_out, **settings)
    assert train(run) == codes.OK
    assert list(validations(run)) == [2, 4] and run.events()[-1]["event"] == "finished"
    change(run, steps=20)
    assert train(run) == codes.OK
    by_step = validations(run)
    assert list(by_step) == [2, 4, 6] and len(set(by_step.values())) == 1
    end = run.events()[-1]
    assert (end["event"], end["step"]) == ("early_stop", 6)
    assert f"no new low in 2 validations; the lowest was {by_step[2]:.4f}" in end["why"]
    assert Board.open_for_read(board_path(alone, 0)).get("state") == RankState.finished
    assert [event["step"] for event in run.events() if event["event"] == "checkpoint"][-1] == 6
    assert train(run) == codes.OK
    assert list(losses(run)) == list(range(1, 7)), "a run that has stopped early does no step more"
    assert run.events()[-1]["event"] == "early_stop"
    change(run, early_stop_evals=3)
    assert train(run) == codes.OK
    assert list(validations(run)) == [2, 4, 6, 8]
