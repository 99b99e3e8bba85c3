"""What Slurm is told to keep the job off, without leaving it too few nodes."""

import pytest

from harness.recovery.room import Room, keep_off

N4 = ("n1", "n2", "n3", "n4")


def room(needed: int, sick: tuple[str, ...] = (), forbidden: tuple[str, ...] = (), nodes: tuple[str, ...] = N4) -> Room:
    return Room(needed, dict.fromkeys(nodes, "idle"), frozenset(sick), frozenset(forbidden))


@pytest.mark.parametrize(
    ("room", "excluded", "expected"),
    [
        pytest.param(room(2), {}, (), id="nothing to exclude"),
        pytest.param(room(2), {"n2": "lost"}, ("n2",), id="enough without it"),
        pytest.param(room(2, forbidden=("n4",)), {"n2": "lost"}, ("n2", "n4"), id="the user's exclusions stay beside ours"),
        pytest.param(room(4), {"n2": "lost"}, (), id="too few without it"),
        pytest.param(room(3, forbidden=("n4",)), {"n2": "lost"}, ("n4",), id="too few: the user's never yield"),
        pytest.param(room(3, sick=("n4",)), {"n2": "lost"}, (), id="too few, since another one is down"),
        pytest.param(room(4), {"n2": "lost", "gone": "lost"}, ("gone",), id="one that is not in the partition may stay"),
        pytest.param(Room(3, None, forbidden=frozenset({"n4"})), {"n2": "lost"}, ("n2", "n4"), id="Slurm is silent"),
    ],
)  # fmt: skip
def test_keep_off(room: Room, excluded: dict[str, str], expected: tuple[str, ...]) -> None:
    assert keep_off(room, excluded).nodes == expected


def test_a_run_with_too_few_nodes_says_what_it_waits_for() -> None:
    text = keep_off(room(4, sick=("n2",)), {"n2": "lost: down*", "n3": "could not start"}).waits_for
    assert "4 nodes needed, 2 healthy: n1, n4" in text
    assert "n2 (lost: down*)" in text and "n3 (could not start)" in text


def test_with_enough_nodes_it_waits_for_nothing() -> None:
    assert keep_off(room(2), {"n2": "lost"}).waits_for == ""


def test_a_silent_controller_is_no_proof_of_enough_nodes() -> None:
    assert not Room(1, None).enough_without({})
