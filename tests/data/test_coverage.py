"""Every window once an epoch, or it is told."""

import numpy as np
import pytest

from harness.data import coverage as module
from harness.data.coverage import coverage
from harness.data.order import SampleOrder


def test_small_sources_are_proven_whole(order: SampleOrder) -> None:
    for number, windows in enumerate(order.windows):
        found = coverage(order, number)
        assert (found.windows, found.looked_at, found.whole, found.problem) == (windows.count, windows.count, True, "")


def test_large_sources_by_a_sample(order: SampleOrder) -> None:
    found = coverage(order, 0, limit=100)
    assert not found.whole and found.looked_at == 100 < found.windows and not found.problem


@pytest.mark.parametrize("fault", ["one twice", "outside", "second epoch"])
def test_a_shuffle_that_is_none(order: SampleOrder, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    monkeypatch.setattr(module, "CHUNK", 16)
    real = SampleOrder.windows_of

    def faulty(self: SampleOrder, source: int, counts: np.ndarray) -> np.ndarray:
        windows = real(self, source, counts)
        size = self.windows[source].count
        place = {"one twice": 20, "outside": 20, "second epoch": size + 20}[fault]
        value = {"one twice": int(real(self, source, np.array([0]))[0]), "outside": size, "second epoch": 0}[fault]
        windows[counts == place] = value
        return windows

    monkeypatch.setattr(SampleOrder, "windows_of", faulty)
    problem = coverage(order, 0).problem
    assert f"epoch {int(fault == 'second epoch')} reads" in problem and "a fault of the order" in problem


def test_the_order_reads_the_windows_that_it_says(order: SampleOrder) -> None:
    """`windows_of` is what `samples` uses: in the first stage, whole, each sample of a source is found again."""
    sources, windows = order.samples(np.arange(80))
    for number in range(2):
        seen = windows[sources == number]
        assert sorted(order.windows_of(number, np.arange(len(seen)))) == sorted(seen.tolist())
