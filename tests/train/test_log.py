import json
from pathlib import Path

import pytest

from harness.run.folder import RunFolder
from harness.train.log import StepLog, drop_after, duration


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def log_steps(log: StepLog, first: int, last: int, **changes: float) -> None:
    values = {"loss": 0.1 + 0.2, "grad_norm": 1 / 3, "lr": 1e-4, "seconds": 2.0, "data_wait": 0.5, "skipped": False}
    for step in range(first, last + 1):
        log.step_done(step, tokens=step * 100, step_tokens=100, **{**values, **changes})  # type: ignore[arg-type]


def test_one_object_per_logged_step_with_full_precision(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(StepLog(run, steps=7, log_every=3), 1, 7)
    lines = run.metrics()
    assert [line["step"] for line in lines] == [3, 6, 7]  # and the last one
    assert lines[0]["loss"] == 0.1 + 0.2 and lines[0]["grad_norm"] == 1 / 3
    assert (lines[1]["tokens"], lines[1]["step_seconds"], lines[1]["data_wait_seconds"]) == (600, 2.0, 0.5)
    assert lines[0].keys() == {
        "step", "tokens", "loss", "grad_norm", "lr", "step_seconds", "tokens_per_second", "data_wait_seconds", "time",
    }  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 3 and printed[0].startswith("step 3/7  loss 0.3000  ")
    assert "tokens/s" in printed[0] and "lr 1.00e-04" in printed[0] and "left" in printed[0]


def test_json_stays_json_without_a_number(run: RunFolder) -> None:
    log_steps(StepLog(run, 9, 1), 1, 1, loss=float("nan"), grad_norm=float("inf"), skipped=True)
    line = run.metrics_path.read_text()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["loss"] is None and record["grad_norm"] is None and record["skipped"] is True


def test_a_disk_that_takes_no_line_does_not_end_training(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.metrics_path.mkdir()
    log_steps(StepLog(run, 9, 1), 1, 1)
    assert "could not write step 1" in capsys.readouterr().out


def test_lines_after_the_checkpoint_move_to_the_attempt(run: RunFolder) -> None:
    log_steps(StepLog(run, 9, 1), 1, 6)
    with run.metrics_path.open("a") as f:
        f.write('{"step": 7, "los')  # killed inside a line
    assert drop_after(run, 4, attempt=2) == 3
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    moved = (run.attempt_dir(2) / "superseded_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in moved[:2]] == [5, 6] and moved[2] == '{"step": 7, "los'
    log_steps(StepLog(run, 9, 1), 5, 5)
    assert drop_after(run, 4, attempt=2) == 1
    assert len((run.attempt_dir(2) / "superseded_metrics.jsonl").read_text().splitlines()) == 4
    assert drop_after(run, 4, attempt=3) == 0 and not run.attempt_dir(3).exists()


def test_nothing_to_drop_in_a_new_run(run: RunFolder) -> None:
    assert drop_after(run, 0, attempt=0) == 0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(4.4, "4 s"), (99, "99 s"), (150, "2 min"), (5 * 3600 + 600, "5 h 10 min"), (12.2 * 86400, "12 d 4 h")],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text
