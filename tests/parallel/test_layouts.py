"""Every layout must train the same model: losses, norms and validations over five steps against one process."""

from pathlib import Path

import pytest

from harness.config.schema import ActivationCheckpoint, PipelineSchedule, SourceConfig
from harness.run.files import read_json_lines
from harness.run.folder import RunFolder
from tests.ranks import exit_codes, start_trainers
from tests.tiny import tiny_model, tiny_run, write_tokens

QWEN3 = tiny_model(model_type="qwen3", no_rope_layer_interval=0, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokens")
    write_tokens(folder / "held_out", documents=50)
    return write_tokens(folder / "web")


def train(folder: Path, data: Path, world_size: int, **changes: object) -> RunFolder:
    validation = {"held_out": SourceConfig(path=str(data.with_name("held_out")))}
    # as many sequences as no layout divides evenly
    measured = {
        "train__stats_every": 2,
        "train__eval_every": 4,
        "train__eval_sequences": 7,
        "data__validation": validation,
    }
    run = tiny_run(folder, data=data, steps=5, **measured, **changes)
    boards = folder / "boards"
    boards.mkdir()
    codes = exit_codes(start_trainers(run.path, world_size, boards))
    assert codes == [0] * world_size, (boards / "rank-0.log").read_text()
    return run


def statistics(run: RunFolder) -> list[dict[str, float]]:
    return [{key: value for key, value in line.items() if key != "time"} for line in read_json_lines(run.stats_path)]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """The runs of one process that the others are held against."""
    return {
        "smollm3": train(tmp_path_factory.mktemp("alone"), data, 1),
        "qwen3": train(tmp_path_factory.mktemp("alone"), data, 1, **{"model__" + k: v for k, v in vars(QWEN3).items()}),
    }


INTERLEAVED = {"parallel__pp": 2, "parallel__pp_schedule": PipelineSchedule.interleaved}
LAYOUTS = {
    "fsdp2": (2, {}),
    "replicated2": (2, {"parallel__dp_replicate": 2}),
    "replicated2xtp2": (4, {"parallel__dp_replicate": 2, "parallel__tp": 2}),
    "hsdp2x2": (4, {"parallel__dp_replicate": 2}),
    "tp2": (2, {"parallel__tp": 2}),
    "fsdp2xtp2": (4, {"parallel__tp": 2}),
    "cp2": (2, {"parallel__cp": 2}),
    "fsdp2xcp2": (4, {"parallel__cp": 2}),
    "tp2xcp2": (4, {"parallel__tp": 2, "parallel__cp": 2}),
    "pp2": (2, {"parallel__pp": 2}),
    "pp2-interleaved": (2, INTERLEAVED),
    "pp2xfsdp2": (4, {"parallel__pp": 2}),
    "pp2xtp2": (4, {"parallel__pp": 2, "parallel__tp": 2}),
    "pp2xcp2": (4, {"parallel__pp": 2, "parallel__cp": 2}),
    "fsdp2-resharding": (2, {"parallel__reshard_after_forward": True}),
    "fsdp2-selective": (2, {"train__activation_checkpoint": ActivationCheckpoint.selective}),
    "one-large-micro-batch": (1, {"train__micro_batch_size": 8}),
    "qwen3-fsdp2xtp2": (4, {"parallel__tp": 2, **{"model__" + k: v for k, v in vars(QWEN3).items()}}),
    "qwen3-pp2": (2, {"parallel__pp": 2, **{"model__" + k: v for k, v in vars(QWEN3).items()}}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_equals_a_single_process(layout: str, alone: dict[str, RunFolder], data: Path, tmp_path: Path) -> None:
    world_size, changes = LAYOUTS[layout]
    run, reference = train(tmp_path, data, world_size, **changes), alone["qwen3" if "qwen3" in layout else "smollm3"]
    found, expected = run.metrics(), reference.metrics()
    assert [line["step"] for line in found] == [1, 2, 3, 4, 5]
    for line, wanted in zip(found, expected, strict=True):
        assert line["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert line["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-4)
        assert (line["tokens"], line["lr"]) == (wanted["tokens"], wanted["lr"])
    assert found[-1]["loss"] < found[0]["loss"]
    validations = [line["loss"] for line in run.validations()]
    assert validations == pytest.approx([line["loss"] for line in reference.validations()], rel=1e-5)
    assert len(validations) == 2
    for line, wanted in zip(statistics(run), statistics(reference), strict=True):
        assert line == pytest.approx(wanted, rel=1e-4)
