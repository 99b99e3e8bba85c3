"""A run on packed samples with padding trains as if each document had been computed alone, without any padding."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from harness.config.schema import Packing
from harness.data.loader import NO_TARGET, MicroBatch, StepBatch
from harness.run import exit_codes as codes
from harness.run.files import read_json_lines
from harness.run.folder import RunFolder
from harness.train.setup import Trainer
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run, write_tokens
from tests.train.conftest import train, trainers_of

STEPS = 4


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    write_tokens(tmp_path / "tokens")
    return tiny_run(
        tmp_path, steps=STEPS, data__packing=Packing.best_fit, train__stats_every=1, optim__clip_grad_norm=0.9
    )


def documents(batch: StepBatch) -> list[MicroBatch]:
    """Every document of the batch as a micro batch of its own, as long as it is; the first token of the next document of
    its window is its last label, as everywhere."""
    found = []
    for micro in batch.micro_batches:
        for ids, labels, places in zip(micro.input_ids, micro.labels, micro.position_ids, strict=True):
            begins = np.flatnonzero(places == 0).tolist()
            for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True):
                part = slice(begin, end)
                if (labels[part] != NO_TARGET).any():
                    found.append(MicroBatch(ids[None, part], labels[None, part], places[None, part]))
    return found


def reference(trainer: Trainer, batch: StepBatch) -> tuple[float, float]:
    """Loss and gradient norm of a batch, document by document."""
    (stage,) = trainer.stepper.model.stages
    alone = documents(batch)
    targets = sum(int((micro.labels != NO_TARGET).sum()) for micro in alone)
    total = 0.0
    for micro in alone:
        loss = stage(**trainer.stepper.make_inputs(micro)).sum() / targets
        loss.backward()
        total += loss.item()
    norm = gradient_norm(trainer)
    for parameter in trainer.stepper.model.parameters.values():
        parameter.grad = None
    return total, norm


def gradient_norm(trainer: Trainer) -> float:
    parameters = trainer.stepper.model.parameters.values()
    squares = [parameter.grad.double().square().sum() for parameter in parameters if parameter.grad is not None]
    return torch.stack(squares).sum().sqrt().item()


def test_equals_the_documents_alone(run: RunFolder, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected: list[tuple[float, float]] = []
    used: list[float] = []
    padding = []

    def prepare(trainer: Trainer) -> None:
        step: Callable[..., object] = trainer.stepper.run

        def watched(batch: StepBatch, *args: object, **settings: object) -> object:
            expected.append(reference(trainer, batch))
            labels = np.concatenate([micro.labels for micro in batch.micro_batches])
            padding.append(int((labels == NO_TARGET).sum()))
            return step(batch, *args, **settings)

        update: Callable[..., None] = trainer.stepper.optimizer.step

        def seen(lr: torch.Tensor, scale: torch.Tensor, *others: object) -> None:
            used.append(scale.item() * gradient_norm(trainer))
            update(lr, scale, *others)

        trainer.stepper.run = watched  # type: ignore[method-assign, assignment]
        trainer.stepper.optimizer.step = seen  # type: ignore[method-assign, assignment]

    trainers_of(monkeypatch, prepare)
    assert train(run) == codes.OK
    assert min(padding) > 0 and sum(padding) > 40, padding
    found = [(line["loss"], line["grad_norm"]) for line in run.metrics()]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    stats = [
        {name: value for name, value in line.items() if "grad_norm/" in name}
        for line in read_json_lines(run.stats_path)
    ]
    np.testing.assert_allclose(used, [min(norm, 0.9) for _, norm in expected], rtol=1e-5)
    squares = [sum(value**2 for value in line.values()) for line in stats]
    np.testing.assert_allclose(np.sqrt(squares), [norm for _, norm in expected], rtol=1e-5)


def test_the_same_on_more_ranks(run: RunFolder, tmp_path: Path) -> None:
    """Ranks have different numbers of targets, so that a mean of their means would be wrong."""
    data = tmp_path / "tokens"
    # at the others' rate of 1e-2 Adam turns rounding into steps of its own, and norms are a thousandth apart at step 4
    settings = {"data": data, "steps": STEPS, "data__packing": Packing.best_fit, "optim__lr": 1e-4}
    one, two = (tiny_run(tmp_path, name=name, **settings) for name in ("one", "two"))
    for folder, ranks in ((one, 1), (two, 2)):
        logs = tmp_path / str(ranks)
        logs.mkdir()
        assert exit_codes(start_trainers(folder.path, ranks, logs)) == [0] * ranks, (logs / "rank-0.log").read_text()
    norms = [[line["grad_norm"] for line in folder.metrics()] for folder in (one, two)]
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-4)
    assert losses(two) == pytest.approx(losses(one), rel=1e-5)


def test_without_an_index_the_run_does_not_begin(
    run: RunFolder, alone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tokens" / "000.ds.index").unlink()
    assert train(run) == codes.CONFIG
    assert "000.ds.index is missing, and data.packing=best_fit needs" in "".join(capsys.readouterr())
