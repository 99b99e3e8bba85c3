"""Lines that follow prints."""

from pathlib import Path

import pytest

from harness.launch.follow import _Printer, event_line, step_line, validation_line
from harness.run.files import append_json_line
from harness.run.folder import RunFolder

RECORD = {
    "step": 20, "loss": 5.3214, "grad_norm": 0.5, "lr": 3e-3, "step_seconds": 1.5, "tokens_per_second": 4012.3, "time": 1.0,
}  # fmt: skip


def test_a_step() -> None:
    line = step_line(RECORD, 120)
    assert line == "step 20/120  loss 5.3214  4,012 tokens/s  grad norm 0.50  lr 3.0e-03  1.50 s/step  2 min 30 s left"


def test_a_step_that_was_not_finite() -> None:
    """JSON has no NaN: the record holds null."""
    assert "loss nan" in step_line({**RECORD, "loss": None, "grad_norm": None}, 120)


def test_a_step_that_was_left_out_and_a_validation() -> None:
    assert step_line({**RECORD, "skipped": "spike"}, 120).endswith("2 min 30 s left  SKIPPED: spike")
    assert validation_line({"step": 2000, "loss": 2.5, "seconds": 1.26}) == "step 2,000: validation loss 2.5000 (1.3 s)"
    assert "loss nan" in validation_line({"step": 2000, "loss": None, "seconds": 1.0})


def test_an_event_says_why_where_and_when() -> None:
    event = {"time": 0.0, "event": "node_excluded", "step": 40, "node": "n1", "why": "down*"}
    assert event_line(event).endswith("node excluded at step 40 on n1 - down*")
    saved = {"time": 0.0, "event": "checkpoint", "step": 40, "seconds": 1.25, "bytes": 36_900_000_000}
    assert event_line(saved).endswith("checkpoint at step 40 36.9 GB in 1.25 s")


@pytest.mark.parametrize(
    ("event", "fields", "says"),
    [
        ("first_step", {"step": 1, "seconds": 31.5}, "first step at step 1 in 31.50 s"),
        (
            "first_step",
            {"step": 1, "seconds": 31.5, "peak_memory_bytes": 61_200_000_000},
            "first step at step 1 in 31.50 s with 61.2 GB of GPU memory",
        ),
        (
            "skip",
            {"step": 12, "reason": "spike", "loss": "9.125", "grad_norm": "88.0", "in_a_row": 1},
            "skip (spike) at step 12 with loss 9.1250, grad norm 88.00",
        ),
        (
            "nonfinite",
            {"step": 12, "reason": "not finite", "loss": "nan", "grad_norm": "inf", "in_a_row": 10},
            "nonfinite (not finite) at step 12 with loss nan, grad norm inf",
        ),
        (
            "rewind",
            {"step": 2, "from_step": 8, "to_step": 2, "skip": [[4, 6]], "why": "from step 8, for train.skip=[[4, 6]]"},
            "rewind at step 2 - from step 8, for train.skip=[[4, 6]]",
        ),
        ("early_stop", {"step": 6, "why": "no new low"}, "early stop at step 6 - no new low"),
        (
            "config_change",
            {"step": 2, "changes": {"train.skip": [[], [[4, 6]]], "optim.lr": [1e-3, 2e-3]}},
            "config change at step 2 - train.skip: [] -> [[4, 6]], optim.lr: 0.001 -> 0.002",
        ),
    ],
)
def test_what_training_writes_down(event: str, fields: dict[str, object], says: str) -> None:
    line = event_line({"time": 0.0, "event": event, "attempt": 0, **fields})
    assert line.split(" ", 1)[1] == says


def test_what_is_new_is_printed_once_and_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path)
    printer = _Printer(run, 120, show_from=5.0)
    for step in (4, 6, 8):
        append_json_line(run.metrics_path, {**RECORD, "step": step, "time": float(step)})
    append_json_line(run.validation_path, {"step": 6, "loss": 2.5, "seconds": 1.0, "time": 7.0})
    append_json_line(run.events_path, {"event": "skip", "step": 6, "reason": "spike", "time": 6.0})
    printer.update("RUNNING")
    state, *lines = capsys.readouterr().out.splitlines()
    assert state == "job is running"
    assert [" ".join(line.split()[:2]) for line in lines[1:]] == ["step 6/120", "step 6:", "step 8/120"]
    assert lines[0].endswith("skip (spike) at step 6")
    append_json_line(run.metrics_path, {**RECORD, "step": 10, "time": 10.0})
    printer.update("RUNNING")
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["10/120"]
