"""A run whose mixture is changed by `data.change_at` ends as if the change had always been there; another change is refused."""

from pathlib import Path

import pytest

from harness.checkpoint.folders import complete_path
from harness.checkpoint.manifest import Manifest
from harness.config.schema import MixtureChange, SourceConfig, StageConfig
from harness.run import exit_codes as codes
from harness.run.folder import RunFolder
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run, write_tokens

STEPS = 8
SETTINGS = {"checkpoint__every_steps": 2, "checkpoint__keep": None}
CHANGE = MixtureChange(step=5, stages=[StageConfig("mixed", None, {"web": 0.5, "more": 0.5})])


def train(run: RunFolder, attempt: int, expected: int = codes.OK) -> str:
    """Train the run to its end; what rank 0 printed."""
    folder = run.attempt_dir(attempt)
    folder.mkdir()
    assert exit_codes(start_trainers(run.path, 1, folder, attempt)) == [expected], (folder / "rank-0.log").read_text()
    return (folder / "rank-0.log").read_text()


def change(run: RunFolder, data: Path, changes: list[MixtureChange]) -> None:
    config = run.load_config()
    config.data.sources = {"web": SourceConfig(path=str(data)), "more": SourceConfig(path=str(data.parent / "more"))}
    config.data.change_at = changes
    run.save_config(config)


@pytest.fixture
def run(data: Path, tmp_path: Path) -> RunFolder:
    if not (data.parent / "more").exists():
        write_tokens(data.parent / "more", documents=100)
    return tiny_run(tmp_path, data=data, steps=STEPS, **SETTINGS)


def test_a_change_after_the_fact_equals_a_run_that_always_had_it(data: Path, tmp_path: Path, run: RunFolder) -> None:
    always = tiny_run(tmp_path, name="always", data=data, steps=STEPS, **SETTINGS)
    change(always, data, [CHANGE])
    train(always, 0)
    train(run, 0)
    before = losses(run)
    assert {step: before[step] for step in range(1, 5)} == {step: losses(always)[step] for step in range(1, 5)}
    assert before != losses(always)
    change(run, data, [CHANGE])
    assert "went back from step 8 to step 4, since data.change_at (steps 5) changes what came after" in train(run, 1)
    assert losses(run) == losses(always)  # bit for bit, each step once
    manifests = [Manifest.read(complete_path(run.checkpoints_dir, step)) for step in (4, 6)]
    assert [[entry["step"] for entry in manifest.changes] for manifest in manifests] == [[], [5]]
    assert list(manifests[1].changes[0]["sources"]) == ["web", "more"]
    (event,) = [event for event in run.events() if event["event"] == "mixture_change"]
    assert (event["step"], event["change_at"], event["weights"]) == (5, 5, {"web": 0.5, "more": 0.5})
    assert "went back" not in train(run, 2)  # the second time it agrees
    change(run, data, [])  # taken back
    assert "went back from step 8 to step 4" in train(run, 3)
    assert losses(run) == before


def test_another_mixture_without_an_entry_is_refused_and_how_to_write_it_is_said(run: RunFolder, data: Path) -> None:
    train(run, 0)
    change(run, data, [])
    config = run.load_config()
    config.data.stages = [StageConfig(weights={"web": 0.5, "more": 0.5})]
    run.save_config(config)
    printed = train(run, 1, codes.CONFIG)
    assert "data.stages.0.weights.more: None in the checkpoint, 0.5 now" in printed
    assert "leave data.stages as it was" in printed and "'data.change_at=[{step: 9, stages: [...]}]'" in printed


def test_files_of_a_change_that_has_begun_may_not_be_others(run: RunFolder, data: Path, tmp_path: Path) -> None:
    change(run, data, [CHANGE])
    train(run, 0)
    write_tokens(tmp_path / "others", documents=90)
    config = run.load_config()
    config.data.sources["more"].path = str(tmp_path / "others")
    run.save_config(config)
    assert "data.change_at.5.sources.more.tokens" in train(run, 1, codes.CONFIG)
