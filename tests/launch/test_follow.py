"""Lines that follow prints."""

from harness.launch.follow import event_line, step_line

RECORD = {
    "step": 20, "loss": 5.3214, "grad_norm": 0.5, "lr": 3e-3, "step_seconds": 1.5, "tokens_per_second": 4012.3, "time": 1.0,
}  # fmt: skip


def test_a_step() -> None:
    line = step_line(RECORD, 120)
    assert line == "step 20/120  loss 5.3214  4,012 tokens/s  grad norm 0.50  lr 3.0e-03  1.50 s/step  2 min 30 s left"


def test_a_step_that_was_not_finite() -> None:
    """JSON has no NaN: the record holds null."""
    assert "loss nan" in step_line({**RECORD, "loss": None, "grad_norm": None}, 120)


def test_an_event_says_why_where_and_when() -> None:
    event = {"time": 0.0, "event": "node_excluded", "step": 40, "node": "n1", "why": "down*"}
    assert event_line(event).endswith("node excluded at step 40 on n1 - down*")
    saved = {"time": 0.0, "event": "checkpoint", "step": 40, "seconds": 1.25, "bytes": 36_900_000_000}
    assert event_line(saved).endswith("checkpoint at step 40 36.9 GB in 1.25 s")
