"""What a step does besides training: it leaves out what looks wrong, measures, averages, and accounts for its time."""

import time
from pathlib import Path

import pytest
import torch

from harness.config.schema import SourceConfig
from harness.observe.board import PHASES, Board, board_path
from harness.parallel.local import local
from harness.run import exit_codes as codes
from harness.run.files import read_json_lines
from harness.train import setup
from harness.train.meters import PhaseClock
from harness.train.setup import Trainer
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run, write_tokens
from tests.train.conftest import state_of, train, trainers_of

CONSTANT = {"schedule__warmup_steps": 0, "schedule__decay_steps": 0}
"""The same learning rate in each step, however long the run."""


def watch_steps(trainer: Trainer, states: dict[int, dict[str, torch.Tensor]]) -> None:
    """Keep the state after each step."""
    run = trainer.stepper.run

    def watched(batch, *args, **kwargs):  # type: ignore[no-untyped-def]
        pending = run(batch, *args, **kwargs)
        states[batch.step] = state_of(trainer)
        return pending

    trainer.stepper.run = watched  # type: ignore[method-assign]


def scale_in(trainer: Trainer, factors: dict[int, float]) -> None:
    """Multiply what the loss is computed from in some steps."""
    trainer.stepper.model.stages[-1].lm.model.norm.register_forward_hook(
        lambda module, args, out: out * factors.get(trainer.step + 1, 1.0)
    )


def test_spikes_and_nan_change_nothing_and_the_next_step_trains(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}

    def prepare(trainer: Trainer) -> None:
        watch_steps(trainer, states)
        scale_in(trainer, {3: 300.0, 12: 300.0, 15: float("nan")})

    trainers_of(monkeypatch, prepare)
    run = tiny_run(
        tmp_path, data=data, steps=17, train__spike_window=8, optim__ema_decay=0.9, optim__lr=1e-3, **CONSTANT
    )
    assert train(run) == codes.OK
    skips = [(e["step"], e["reason"], e["in_a_row"]) for e in run.events() if e["event"] == "skip"]
    assert skips == [(12, "spike", 1), (15, "not finite", 1)], "before the window is full nothing is a spike"
    assert {line["step"]: line["skipped"] for line in run.metrics() if "skipped" in line} == {
        12: "spike",
        15: "not finite",
    }
    board = Board.open_for_read(board_path(alone, 0))
    assert (board.get("nonfinite_total"), board.get("skipped_total")) == (1, 2)
    for skipped in (12, 15):
        for name, tensor in states[skipped].items():
            if name == "spikes.in_a_row":  # counts just that
                continue
            assert torch.equal(tensor, states[skipped - 1][name]), (skipped, name)
    for trained in (3, 11, 13, 16):
        for name, tensor in states[trained].items():
            same = torch.equal(tensor, states[trained - 1][name]) and name != "spikes.in_a_row"
            assert not same and tensor.isfinite().all(), (trained, name)
    assert states[17]["spikes.count"] == 15
    assert states[17]["optim.model.norm.weight.step"] == 15


def test_a_new_level_of_the_loss_is_taken_for_granted_after_a_while(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = trainers_of(monkeypatch, lambda trainer: scale_in(trainer, dict.fromkeys(range(10, 19), 300.0)))
    settings = {"train__spike_window": 8, "train__max_nonfinite": 3, "optim__lr": 1e-3, "checkpoint__every_steps": 100}
    run = tiny_run(tmp_path, data=data, steps=18, **settings, **CONSTANT)
    assert train(run) == codes.OK
    assert [line["step"] for line in run.metrics() if "skipped" in line] == [10, 11, 12]
    assert [event["step"] for event in run.events() if event["event"] == "spikes_forgotten"] == [12]
    assert state_of(seen[0])["optim.model.norm.weight.step"] == 18 - 3


def test_statistics_are_those_of_gradients_weights_and_logits(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: dict[int, dict[str, float]] = {}

    def prepare(trainer: Trainer) -> None:
        model = trainer.stepper.model.stages[0].lm
        step, logits = trainer.stepper.optimizer.step, []  # type: ignore[var-annotated]
        model.model.norm.register_forward_hook(
            lambda module, args, out: logits.append(out.detach().double() @ model.lm_head.weight.detach().double().T)
        )

        def watched(*args: torch.Tensor) -> None:
            found = torch.cat([part.flatten(0, 1) for part in logits])
            logits.clear()
            figures = {
                "logits/max": found.max().item(),
                "logits/mean_square_lse": found.logsumexp(1).square().mean().item(),
            }
            squares: dict[str, float] = {}
            for name, parameter in trainer.stepper.optimizer.parameters.items():
                group = "embedding" if "embed" in name else name.removeprefix("model.").replace(".weight", "")
                if ".layers." in name:
                    part = "norms" if "norm" in name else "attention" if "attn" in name else "mlp"
                    group = ".".join([*name.split(".")[1:3], part])
                for kind, tensor in (("grad_norm", parameter.grad), ("weight_norm", parameter.detach())):
                    key = f"{kind}/{group}"
                    squares[key] = squares.get(key, 0.0) + local(tensor).double().square().sum().item()
            figures |= {key: square**0.5 for key, square in squares.items()}
            expected[trainer.step + 1] = figures
            step(*args)

        trainer.stepper.optimizer.step = watched  # type: ignore[method-assign]

    trainers_of(monkeypatch, prepare)
    run = tiny_run(tmp_path, data=data, steps=7, train__stats_every=3)
    assert train(run) == codes.OK
    lines = list(read_json_lines(run.stats_path))
    assert [line["step"] for line in lines] == [3, 6]
    norms = {line["step"]: line["grad_norm"] for line in run.metrics()}
    for line in lines:
        figures = {key: value for key, value in line.items() if key not in ("step", "time")}
        assert figures == pytest.approx(expected[line["step"]], rel=1e-5)
        squares = sum(value**2 for key, value in figures.items() if key.startswith("grad_norm/"))
        assert squares**0.5 == pytest.approx(norms[line["step"]], rel=1e-6)


def test_the_moving_average_goes_on_where_it_was(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    seen = trainers_of(monkeypatch, lambda trainer: watch_steps(trainer, states))
    settings = {"optim__ema_decay": 0.75, **CONSTANT}
    whole = tiny_run(tmp_path, name="whole", data=data, steps=5, **settings)
    assert train(whole) == codes.OK
    names = [name for name in states[1] if name.startswith("model.")]
    for step in range(2, 6):
        for name in names:
            average = states[step - 1][f"ema.{name.removeprefix('model.')}"].lerp(states[step][name], 0.25)
            torch.testing.assert_close(states[step][f"ema.{name.removeprefix('model.')}"], average)
    run = tiny_run(tmp_path, data=data, steps=2, **settings)
    assert train(run) == codes.OK
    config = run.load_config()
    config.train.steps = 5
    run.save_config(config)
    assert train(run) == codes.OK
    assert losses(run) == losses(whole)
    expected = state_of(seen[0])
    for name, tensor in state_of(seen[2]).items():
        assert torch.equal(tensor, expected[name]), name


def test_a_moving_average_that_is_asked_for_later_begins_with_the_weights_there(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: dict[int, dict[str, torch.Tensor]] = {}
    trainers_of(monkeypatch, lambda trainer: watch_steps(trainer, states))
    run = tiny_run(tmp_path, data=data, steps=2, **CONSTANT)
    assert train(run) == codes.OK
    config = run.load_config()
    config.train.steps, config.optim.ema_decay = 3, 0.75
    run.save_config(config)
    assert train(run) == codes.OK
    name = "model.layers.1.mlp.up_proj.weight"
    average = states[2][f"model.{name}"].lerp(states[3][f"model.{name}"], 0.25)
    torch.testing.assert_close(states[3][f"ema.{name}"], average)


def test_phases_add_up_to_the_time_since_the_start(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, charged = [], []

    class Watched(PhaseClock):
        def __init__(self, board: Board) -> None:
            began.append(time.perf_counter())
            super().__init__(board)

        def charge(self, seconds: dict[str, float]) -> None:
            charged.append(time.perf_counter())
            super().charge(seconds)

    monkeypatch.setattr(setup, "PhaseClock", Watched)
    settings = {"train__eval_every": 4, "train__eval_sequences": 8, "checkpoint__every_steps": 100}
    run = tiny_run(tmp_path, data=data, steps=6, **settings)
    config = run.load_config()
    config.data.validation = {"held": SourceConfig(path=str(write_tokens(tmp_path / "held")))}
    run.save_config(config)
    assert train(run) == codes.OK
    for line in run.metrics():  # the outcome of a step before a pause is heard of sooner than that of others
        assert 8 * 64 / line["tokens_per_second"] >= line["step_seconds"] * 0.999
    board = Board.open_for_read(board_path(alone, 0))
    phases = {phase: board.get("phase_seconds", row) for row, phase in enumerate(PHASES)}
    assert all(phases.values()), phases  # the only checkpoint is that after the last step
    assert sum(phases.values()) == pytest.approx(charged[-1] - began[0], rel=0.02)


def test_deterministic_mode_trains(data: Path, tmp_path: Path) -> None:
    runs = [tiny_run(tmp_path, name=name, data=data, steps=3) for name in ("ordinary", "deterministic")]
    config = runs[1].load_config()
    config.train.deterministic = True
    runs[1].save_config(config)
    for run in runs:
        assert exit_codes(start_trainers(run.path, 2, tmp_path)) == [0, 0], (tmp_path / "rank-0.log").read_text()
    assert losses(runs[0]) == losses(runs[1])
