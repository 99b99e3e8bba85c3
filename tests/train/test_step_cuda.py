"""Whole steps on a GPU: the host waits for the device nowhere, the loss is that of the CPU, a step that is not finite
changes nothing, and deterministic mode gives the same bits. Needs a CUDA device."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from harness.checkpoint.manifest import FileRecord, Manifest
from harness.checkpoint.storage import METADATA
from harness.config.schema import Precision
from harness.parallel.local import local
from harness.run import exit_codes as codes
from harness.run.folder import RunFolder
from harness.train.devices import FP8_CAPABILITY
from harness.train.setup import Trainer
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run
from tests.train.conftest import state_of, train, trainers_of

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

STEPS, WARM_UP = 8, 2
"""Steps of each run, and those of them that compile and may wait."""
SHAPES = {
    Precision.bf16: {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4},
    # wide enough for its matrices to be in FP8
    Precision.fp8: {
        "hidden_size": 1024,
        "intermediate_size": 1024,
        "num_attention_heads": 16,
        "num_hidden_layers": 2,
    },
}
"""All with a head_dim of 64."""
TOLERANCES = {Precision.bf16: 0.01, Precision.fp8: 0.02}


@pytest.fixture(params=SHAPES)
def precision(request: pytest.FixtureRequest) -> Precision:
    found = Precision(request.param)
    if found is Precision.fp8 and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("this GPU has no FP8 units")
    if found is Precision.fp8 and find_spec("torchao") is None:
        pytest.skip("needs torchao")
    return found


@pytest.fixture(autouse=True)
def nothing_compiled_yet() -> None:
    """What other models have compiled counts towards the compiler's limit of variants."""
    torch.compiler.reset()
    counters.clear()


def small_run(
    root: Path, data: Path, name: str, *, gpus: int, precision: Precision = Precision.bf16, **changes: Any
) -> RunFolder:
    """Masked documents, four micro batches a step, statistics in every second step, a moving average of the weights."""
    shape = {f"model__{key}": value for key, value in SHAPES[precision].items()}
    settings = {
        "cluster__gpus_per_node": gpus, "train__precision": precision if gpus else Precision.fp32,
        "data__seq_len": 128, "train__stats_every": 2, "optim__ema_decay": 0.9, "optim__lr": 1e-3,
        "checkpoint__every_steps": 100,
    }  # fmt: skip
    return tiny_run(root, name=name, data=data, steps=STEPS, **shape, **settings, **changes)


def let_nothing_wait(trainer: Trainer) -> None:
    """Have torch raise RuntimeError wherever a step waits for the device, but for the first ones."""
    run = trainer.stepper.run

    def strict(batch, *args, **kwargs):  # type: ignore[no-untyped-def]
        torch.cuda.set_sync_debug_mode("error" if batch.step > WARM_UP else "default")
        try:
            return run(batch, *args, **kwargs)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    trainer.stepper.run = strict  # type: ignore[method-assign]


def test_no_step_waits_for_the_device_and_the_loss_is_that_of_the_cpu(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    first: dict[str, torch.Tensor] = {}
    trainers_of(monkeypatch, lambda trainer: first.update(state_of(trainer)))
    cpu = small_run(tmp_path, data, "cpu", gpus=0, precision=precision)
    assert train(cpu) == codes.OK

    def prepare(trainer: Trainer) -> None:
        assert trainer.state.keys() == first.keys()
        for name, tensor in trainer.state.items():  # each device draws weights of its own
            local(tensor).copy_(first[name])
        let_nothing_wait(trainer)

    trainers_of(monkeypatch, prepare)
    gpu = small_run(tmp_path, data, "gpu", gpus=1, precision=precision)
    assert train(gpu) == codes.OK
    assert counters["stats"]["unique_graphs"], "nothing was compiled"
    assert losses(gpu) == pytest.approx(losses(cpu), rel=TOLERANCES[precision])
    assert losses(gpu)[STEPS] < losses(gpu)[1]
    norms = [[line["grad_norm"] for line in run.metrics()] for run in (gpu, cpu)]
    assert norms[0] == pytest.approx(norms[1], rel=0.1)


def test_a_wait_inside_a_step_is_seen(alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above relies on."""

    def prepare(trainer: Trainer) -> None:
        let_nothing_wait(trainer)
        trainer.stepper.model.stages[-1].lm.model.norm.register_forward_hook(
            lambda module, args, out: out * out.isfinite().all().item()
        )

    trainers_of(monkeypatch, prepare)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):
        train(small_run(tmp_path, data, "waits", gpus=1))


def test_a_step_that_is_not_finite_changes_nothing(
    alone: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision
) -> None:
    bad = WARM_UP + 3
    states: dict[int, dict[str, torch.Tensor]] = {}

    def prepare(trainer: Trainer) -> None:
        let_nothing_wait(trainer)
        run = trainer.stepper.run

        def watched(batch, *args, **kwargs):  # type: ignore[no-untyped-def]
            pending = run(batch, *args, **kwargs)
            states[batch.step] = state_of(trainer)
            return pending

        trainer.stepper.run = watched  # type: ignore[method-assign]
        trainer.stepper.model.stages[-1].lm.model.norm.register_forward_hook(
            lambda module, args, out: out * (float("nan") if trainer.step + 1 == bad else 1.0)
        )

    trainers_of(monkeypatch, prepare)
    run = small_run(tmp_path, data, "nan", gpus=1, precision=precision)
    assert train(run) == codes.OK
    skips = [(event["step"], event["reason"]) for event in run.events() if event["event"] == "skip"]
    assert skips == [(bad, "not finite")]
    for name, tensor in states[bad].items():
        assert torch.equal(tensor, states[bad - 1][name]), name
    for name, tensor in states[bad + 1].items():
        assert tensor.isfinite().all(), name
        if name.startswith("model."):
            assert not torch.equal(tensor, states[bad][name]), name


def test_deterministic_mode_gives_the_same_bits(data: Path, tmp_path: Path) -> None:
    """In processes of their own, since the mode must be chosen before CUDA's libraries start."""
    runs = [
        small_run(tmp_path, data, name, gpus=1, train__deterministic=True) for name in ("once", "again")
    ]  # fmt: skip
    for run in runs:
        ended = exit_codes(start_trainers(run.path, 1, tmp_path), timeout=240)
        assert ended == [0], (tmp_path / "rank-0.log").read_text()
    assert losses(runs[0]) == losses(runs[1])
    assert saved_tensors(runs[0]) == saved_tensors(runs[1]), "the last checkpoints differ"


def saved_tensors(run: RunFolder) -> list[FileRecord]:
    """Files of the last checkpoint that hold tensors, with their sizes and checksums."""
    manifest = Manifest.read(run.checkpoints_dir / f"step-{STEPS:08d}")
    files = [record for record in manifest.files if record.name != METADATA]
    assert files
    return files
