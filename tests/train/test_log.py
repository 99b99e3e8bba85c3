import json
from functools import partial
from pathlib import Path

import pytest

from harness.run.folder import RunFolder
from harness.run.journal import journal
from harness.train.log import StepLog, drop_after, write_stats, write_validation


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    return run


def log_steps(log: StepLog, first: int, last: int, **changes: object) -> None:
    """Steps of 100 tokens, one each 2.5 s."""
    values = {"loss": 0.1 + 0.2, "grad_norm": 1 / 3, "lr": 1e-4, "seconds": 2.0, "data_wait": 0.5, "skipped": None}
    for step in range(first, last + 1):
        log.step_done(step, tokens=step * 100, step_tokens=100, **{"now": 2.5 * step, **values, **changes})  # type: ignore[arg-type]


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
    assert "lr 1.00e-04" in printed[0]


def test_rates_follow_the_times_that_are_given(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(StepLog(run, steps=100, log_every=2), 1, 4)
    first, second = run.metrics()
    assert first["tokens_per_second"] == pytest.approx(200 / 4.5)  # the first step began its 2 s before it was done
    assert second["tokens_per_second"] == pytest.approx(200 / 5.0)
    printed = capsys.readouterr().out.splitlines()
    assert "  40 tokens/s  " in printed[1] and printed[1].endswith("  4 min 0 s left")  # 96 steps of 2.5 s


def test_json_stays_json_without_a_number(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    log_steps(StepLog(run, 9, 1), 1, 1, loss=float("nan"), grad_norm=float("inf"), skipped="not finite")
    line = run.metrics_path.read_text()
    record = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["loss"] is None and record["grad_norm"] is None and record["skipped"] == "not finite"
    assert capsys.readouterr().out.rstrip().endswith("left  SKIPPED: not finite")
    write_validation(run, 1, tokens=100, loss=float("nan"), seconds=1.0)
    write_stats(run, 1, {"grad_norm/layers": float("inf"), "logits/max": 2.5})
    assert (
        '"loss": null' in run.validation_path.read_text() and '"grad_norm/layers": null' in run.stats_path.read_text()
    )


def test_validations_and_statistics_have_their_files(run: RunFolder) -> None:
    write_validation(run, 5, tokens=500, loss=0.1 + 0.2, seconds=1.5)
    write_validation(run, 10, tokens=1000, loss=2.0, seconds=1.5)
    assert [(line["step"], line["tokens"], line["loss"]) for line in run.validations()] == [
        (5, 500, 0.1 + 0.2),
        (10, 1000, 2.0),
    ]
    assert run.validations()[0].keys() == {"step", "tokens", "loss", "seconds", "time"}
    write_stats(run, 5, {"logits/max": 2.5})
    stats = json.loads(run.stats_path.read_text())
    assert (stats["step"], stats["logits/max"]) == (5, 2.5) and stats["time"] > 1e9


def test_a_disk_that_takes_no_line_does_not_end_training(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.metrics_path.mkdir()
    log_steps(StepLog(run, 9, 1), 1, 1)
    assert "could not write step 1" in capsys.readouterr().out
    log_steps(StepLog(run, 9, 1), 2, 3)
    assert capsys.readouterr().out.count("could not write") == 0  # said once
    run.metrics_path.rmdir()
    log_steps(StepLog(run, 9, 1), 4, 4)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]


def test_lines_that_are_to_be_dropped_are_never_doubled_by_a_full_disk(run: RunFolder) -> None:
    """The superseded lines can't be moved yet: new ones wait until they are."""
    log_steps(StepLog(run, 9, 1), 1, 6)
    run.attempt_dir(1).touch()  # no folder can be made there
    journal(run.metrics_path).first(partial(drop_after, run.metrics_path, 4, run.attempt_dir(1)))
    log_steps(StepLog(run, 9, 1), 5, 5)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6]
    run.attempt_dir(1).unlink()
    log_steps(StepLog(run, 9, 1), 6, 7)
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5, 6, 7]
    moved = (run.attempt_dir(1) / "superseded_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in moved] == [5, 6]


def test_lines_after_the_checkpoint_move_to_the_attempt(run: RunFolder) -> None:
    log_steps(StepLog(run, 9, 1), 1, 6)
    with run.metrics_path.open("a") as f:
        f.write('{"step": 7, "los')  # killed inside a line
    assert drop_after(run.metrics_path, 4, run.attempt_dir(2)) == 3
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
    moved = (run.attempt_dir(2) / "superseded_metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in moved[:2]] == [5, 6] and moved[2] == '{"step": 7, "los'
    log_steps(StepLog(run, 9, 1), 5, 5)
    assert drop_after(run.metrics_path, 4, run.attempt_dir(2)) == 1
    assert len((run.attempt_dir(2) / "superseded_metrics.jsonl").read_text().splitlines()) == 4
    assert drop_after(run.metrics_path, 4, run.attempt_dir(3)) == 0 and not run.attempt_dir(3).exists()


def test_every_record_of_a_step_that_is_done_again_moves(run: RunFolder) -> None:
    for step in (2, 4, 6):
        write_validation(run, step, tokens=step, loss=1.0, seconds=1.0)
        write_stats(run, step, {"logits/max": 1.0})
    for path in (run.validation_path, run.stats_path):
        assert drop_after(path, 3, run.attempt_dir(1)) == 2
        moved = (run.attempt_dir(1) / f"superseded_{path.name}").read_text().splitlines()
        assert [json.loads(line)["step"] for line in moved] == [4, 6]
    assert [line["step"] for line in run.validations()] == [2]


def test_only_the_end_of_a_long_file_moves(tmp_path: Path) -> None:
    path, superseded = tmp_path / "long.jsonl", tmp_path / "attempts" / "superseded_long.jsonl"
    path.write_text("".join(f'{{"step": {step}, "pad": "{"x" * 1000}"}}\n' for step in range(1, 4001)))
    assert drop_after(path, 1500, superseded.parent) == 2500  # more than one block
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(1, 1501))
    assert [json.loads(line)["step"] for line in superseded.read_text().splitlines()] == list(range(1501, 4001))


def test_nothing_to_drop_in_a_new_run(run: RunFolder) -> None:
    assert drop_after(run.metrics_path, 0, run.attempt_dir(0)) == 0
