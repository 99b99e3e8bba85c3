"""From a board's counts to Prometheus' cumulative buckets."""

from collections.abc import Iterable

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.utils import floatToGoString

from harness.observe.board import Histogram


def total(histograms: Iterable[Histogram]) -> Histogram:
    """The sum of histograms of one shape, at least one. Raises ValueError for none."""
    parts = list(histograms)
    if not parts:
        raise ValueError("no histogram to sum")
    counts = [sum(column) for column in zip(*(part.counts for part in parts), strict=True)]
    return Histogram(parts[0].bounds, counts, sum(part.sum for part in parts))


def add_histogram(family: HistogramMetricFamily, labels: list[str], histogram: Histogram) -> None:
    """Add one series of `histogram` to `family`: cumulative counts, the last bucket +Inf."""
    buckets: list[tuple[str, float]] = []
    cumulative = 0.0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        cumulative += count
        buckets.append((floatToGoString(bound), cumulative))
    family.add_metric(labels, buckets, histogram.sum)
