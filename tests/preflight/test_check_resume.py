"""What the step says of runs that do not come through. That a sound one does: test_command_line."""

from pathlib import Path
from typing import Any

import pytest

from harness.launch.launch import Launched
from harness.preflight import check_resume as module
from harness.preflight.check_resume import _Failed, _train_to_the_end, _wait, check_resume, differences
from harness.run.attempt import Outcome, write_outcome
from tests.preflight.subjects import subject
from tests.tiny import tiny_run

STEPS = {step: {"loss": 2.0 / step, "grad_norm": 1.0, "lr": 0.1} for step in range(1, 7)}


def changed(step: int, **figures: float | None) -> dict[int, dict[str, Any]]:
    return {**STEPS, step: {**STEPS[step], **figures}}


def test_one_bit_of_one_step_is_found() -> None:
    loss = 0.4000000000000001
    assert differences(STEPS, changed(5, loss=loss), [5, 6]) == [
        f"loss of step 5 was 0.4 and is {loss} after the resume"
    ]
    assert "grad_norm of step 6 was 1.0" in differences(STEPS, changed(6, grad_norm=2.0), [5, 6])[0]
    assert "loss of step 5 is not finite" in differences(changed(5, loss=None), STEPS, [5, 6])[0]
    assert differences(STEPS, {5: STEPS[5]}, [5, 6]) == ["step 6 was not done again"]
    assert differences(STEPS, changed(4, loss=9.0), [5, 6]) == []


def test_a_run_that_starts_from_elsewhere_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start finds no checkpoint, trains all over again, and gets the same losses: that is no resume."""
    monkeypatch.setattr(module, "_train_and_kill", lambda config, run: STEPS)
    monkeypatch.setattr(module, "_train_to_the_end", lambda config, run: None)
    monkeypatch.setattr(module, "complete_steps", lambda folder: [4])
    monkeypatch.setattr(module, "_metrics", lambda run: STEPS)
    (failure,) = check_resume(subject(tmp_path)).failures
    assert failure.startswith("the second start went on from None, not from the newest checkpoint, that of step 4")


def test_a_run_that_can_not_be_launched_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "write_tokens", lambda folder, small: None)
    found = check_resume(subject(tmp_path))
    assert "data.sources.random.path=" in found.failures[0]


def test_a_run_that_ends_before_it_is_killed_fails_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENDLESS", 2)
    found = check_resume(subject(tmp_path))
    assert found.failures == ("a small run of this config ended by itself before it was killed: all 2 steps are done",)
    assert "step 2/2" in found.detail


def test_a_second_start_that_fails_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path)
    run.attempt_dir(1).mkdir(parents=True)
    (run.attempt_dir(1) / "n1.log").write_text("Traceback\n")
    write_outcome(run, 1, Outcome("failed", "", "the model is wrong", final=True, exit_code=2))
    monkeypatch.setattr(module, "launch", lambda config, plan: Launched("999999999", run, 4, {}))
    with pytest.raises(_Failed, match="launched again after a kill and did not finish: the model is wrong") as raised:
        _train_to_the_end(run.load_config(), run)
    assert raised.value.detail == "Traceback"


def test_a_save_that_fails_is_told_as_that(tmp_path: Path) -> None:
    run = tiny_run(tmp_path)
    run.ledger(0).write("checkpoint_failed", 4, reason="rank 0: OSError: [Errno 28] No space left on device")
    with pytest.raises(_Failed, match="could not save its checkpoint of step 4: rank 0: OSError"):
        _wait(lambda: False, run)


def test_a_run_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_SECONDS", 0.0)
    with pytest.raises(_Failed, match="did not come further than step 0 within 0 s"):
        _wait(lambda: False, tiny_run(tmp_path))
