"""A run that is told to leave batches out ends as if it had never seen them."""

from pathlib import Path

from harness.checkpoint.folders import complete_path, complete_steps
from harness.checkpoint.manifest import Manifest
from harness.run import exit_codes as codes
from harness.run.folder import RunFolder
from tests.ranks import exit_codes, start_trainers
from tests.tiny import losses, tiny_run

STEPS = 8
SETTINGS = {"checkpoint__every_steps": 2, "checkpoint__keep": None}


def train(run: RunFolder, attempt: int, skip: list[list[int]]) -> str:
    """Train the run to its end with `train.skip` changed to `skip`; what rank 0 printed."""
    config = run.load_config()
    config.train.skip = skip
    run.save_config(config)
    run.attempt_dir(attempt).mkdir()
    folder = run.attempt_dir(attempt)
    assert exit_codes(start_trainers(run.path, 1, folder, attempt)) == [0], (folder / "rank-0.log").read_text()
    return (folder / "rank-0.log").read_text()


def test_skip_after_the_fact_equals_a_run_that_always_skipped(data: Path, tmp_path: Path) -> None:
    always = tiny_run(tmp_path, name="always", data=data, steps=STEPS, **SETTINGS)
    train(always, 0, [[4, 6]])
    run = tiny_run(tmp_path, data=data, steps=STEPS, **SETTINGS)
    train(run, 0, [])
    assert losses(run) != losses(always)
    printed = train(run, 1, [[4, 6]])
    assert "went back from step 8 to step 2" in printed
    assert losses(run) == losses(always)  # bit for bit, each step once
    assert complete_steps(run.checkpoints_dir) == [8, 6, 4, 2]
    assert Manifest.read(complete_path(run.checkpoints_dir, 4)).skips == ((4, 6),)
    abandoned = run.checkpoints_dir / "abandoned" / "attempt-001"
    assert len(list(abandoned.iterdir())) == 3
    events = [event for event in run.events() if event["event"] in ("rewind", "train_start")]
    assert [(event["event"], event["step"]) for event in events] == [
        ("train_start", 0),
        ("rewind", 2),
        ("train_start", 2),
    ]
    assert "went back" not in train(run, 2, [[4, 6]])  # the second time it agrees


def test_a_run_without_a_way_back_ends_and_says_so(data: Path, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, data=data, steps=4, checkpoint__keep=1)
    train(run, 0, [])
    config = run.load_config()
    config.train.skip = [[2, 2]]
    run.save_config(config)
    run.attempt_dir(1).mkdir()
    assert exit_codes(start_trainers(run.path, 1, tmp_path, 1)) == [codes.CONFIG]
    assert "a checkpoint of step 1 or before is needed" in (tmp_path / "rank-0.log").read_text()
    assert complete_steps(run.checkpoints_dir) == [4]
