"""A run may restart for ever as long as it gets further."""

from harness.run.budget import restarts_without_progress


def _restarts(*steps: int) -> list[dict[str, object]]:
    return [{"event": "restart", "step": step, "reason": "rank_crash"} for step in steps]


def test_progress_resets_the_count() -> None:
    assert restarts_without_progress(_restarts(10, 20, 30, 40)) == 0


def test_dying_at_the_same_step_counts() -> None:
    assert restarts_without_progress(_restarts(10, 50, 50, 50)) == 2


def test_falling_back_is_no_progress() -> None:
    assert restarts_without_progress(_restarts(50, 45, 49, 50)) == 3


def test_never_getting_anywhere_counts_from_the_second_start() -> None:
    assert restarts_without_progress(_restarts(0, 0, 0)) == 2


def test_steps_that_are_done_again_after_a_rewind_are_progress() -> None:
    events = [*_restarts(50), {"event": "rewind", "step": 20}, *_restarts(30, 40, 45)]
    assert restarts_without_progress(events) == 0
    assert restarts_without_progress([*events, *_restarts(45, 45)]) == 2


def test_other_events_do_not_count() -> None:
    events = [*_restarts(5, 5), {"event": "checkpoint", "step": 5}, {"event": "rank_failed", "step": 5}]
    assert restarts_without_progress(events) == 1


def test_somebody_who_launches_it_again_gives_it_a_new_budget() -> None:
    events = [*_restarts(5, 5, 5), {"event": "restart", "step": 5, "reason": "user"}]
    assert restarts_without_progress(events) == 0
