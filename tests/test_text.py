"""Numbers as people read them."""

import pytest

from harness.text import ago_text, bytes_text, count_text, duration_text


@pytest.mark.parametrize(
    ("size", "text"), [(12, "12 B"), (36_901_183_488, "36.9 GB"), (1.5e12, "1.5 TB"), (2048, "2.0 kB")]
)
def test_bytes(size: float, text: str) -> None:
    assert bytes_text(size) == text


@pytest.mark.parametrize(("count", "text"), [(7, "7"), (3_075_098_624, "3.08 B"), (11.136e12, "11.14 T")])
def test_counts(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(12.4, "12 s"), (250, "4 min 10 s"), (12_000, "3 h 20 min"), (2_101_000, "24 d 7 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_clocks_that_disagree_are_now() -> None:
    assert ago_text(-3) == "0 s ago"
