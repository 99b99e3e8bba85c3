"""How much of each source the file system holds locally."""

from collections.abc import Iterable, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric

from harness.data.copies import mount_point
from harness.data.residency import residency, token_files, total


class ResidencyCollector:
    """harness_data_resident_ratio of every source. In `Background`, at a low cadence: it looks at every token file, and
    that hangs with the file system."""

    name = "residency"

    def __init__(self, paths: Mapping[str, str]) -> None:
        """`paths`: source -> its path. Nothing is looked at here."""
        self._paths = dict(paths)

    def collect(self) -> Iterable[Metric]:
        """Raises OSError where a source can't be read at all."""
        family = GaugeMetricFamily(
            "harness_data_resident_ratio",
            "Share of the source that the file system holds locally",
            labels=["mount", "source"],
        )
        for source, path in self._paths.items():
            size, resident = total(residency(token_files(path)))
            if size:
                family.add_metric([mount_point(path), source], resident / size)
        yield family
