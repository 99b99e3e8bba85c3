"""What the node's stager says of itself, as metrics."""

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from harness.data.stage_status import read_status

FRESH_SECONDS = 60.0
"""A spare that has said nothing for so long is not there any more."""


class StagingCollector:
    """Reads the stager's status file. In `Background`: the local disk may hang too.

    Before the stager has written anything the node is simply not ready.
    """

    name = "staging"

    def __init__(self, status: Path) -> None:
        self._path = status

    def collect(self) -> Iterable[Metric]:
        status = read_status(self._path)
        ready = status is not None and status.ready
        yield GaugeMetricFamily("harness_stage_ready", "1: this node has a copy of all that the run needs", value=ready)
        if status is None:
            return
        text = "Share of the bytes to be staged that are there in complete copies"
        yield GaugeMetricFamily("harness_stage_ready_ratio", text, value=status.ready_ratio)
        text = "Bytes read for staging since the stager was started"
        yield CounterMetricFamily("harness_stage_bytes_total", text, value=status.bytes_copied)
        files = GaugeMetricFamily("harness_stage_files", "Files to be staged, by what became of them", labels=["state"])
        done = {"staged": status.files_staged, "no_room": status.files_left, "failed": status.files_failed}
        for state, count in {**done, "waiting": status.files_wanted - sum(done.values())}.items():
            files.add_metric([state], count)
        yield files


class SpareCollector:
    """For the head node: how ready the nodes are that stage for the run without being in it.

    Only a spare that goes on saying so counts (`harness.data stage --run RUN --serve ADDRESS`): one that was ready last week
    may have lost its disk.
    """

    name = "spares"

    def __init__(self, folder: Path, nodes: Collection[str]) -> None:
        """`folder`: the run's `staging_dir`; `nodes`: those of the attempt, which export their own."""
        self._folder, self._nodes = folder, set(nodes)

    def collect(self) -> Iterable[Metric]:
        text = "1: this spare node has a copy of all that the run needs"
        ready = GaugeMetricFamily("harness_stage_spare_ready", text, labels=["spare"])
        for path in sorted(self._folder.glob("*.json")):
            try:
                status = read_status(path)
            except (OSError, ValueError):  # one that is damaged must not hide the others
                continue
            if path.stem not in self._nodes and status and time.time() - status.updated < FRESH_SECONDS:
                ready.add_metric([path.stem], status.ready)
        yield ready
