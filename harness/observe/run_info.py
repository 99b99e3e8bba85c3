"""What the agent itself knows of the run: its identity, when this attempt began, restarts and their reasons."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

RESTART_REASONS = (
    "rank_crash", "hang", "node_fail", "preempt", "timeout", "nonfinite", "storage", "user", "unknown",
)  # fmt: skip
"""Values of harness_restarts_total's `reason`; part of the metrics contract."""


@dataclass(frozen=True)
class RunInfo:
    """Labels of harness_run_info. `gpu` is the GPU's name, or "none"."""

    run_id: str
    git_commit: str
    config_hash: str
    world_size: str
    gpu: str


class RunInfoCollector:
    """`restarts` (reason -> count so far in the run) is read at each scrape, so the agent may go on changing it.

    Give it on the head node only, None elsewhere: it counts the run's restarts, not the node's. A reason outside
    RESTART_REASONS counts as `unknown`.
    """

    name = "run"

    def __init__(
        self, info: RunInfo, attempt_start: float, gpus_expected: int, restarts: Mapping[str, int] | None
    ) -> None:
        self._info = info
        self._attempt_start = attempt_start
        self._gpus_expected = gpus_expected
        self._restarts = restarts

    def collect(self) -> Iterable[Metric]:
        yield InfoMetricFamily("harness_run", "The run that this node works for", value=asdict(self._info))
        text = "Unix time at which this attempt began"
        yield GaugeMetricFamily("harness_attempt_start_timestamp_seconds", text, value=self._attempt_start)
        text = "GPUs that this node should have for the run"
        yield GaugeMetricFamily("harness_gpu_expected", text, value=self._gpus_expected)
        if self._restarts is None:
            return
        counts = dict.fromkeys(RESTART_REASONS, 0)
        for reason, count in dict(self._restarts).items():
            counts[reason if reason in counts else "unknown"] += count
        family = CounterMetricFamily("harness_restarts_total", "Restarts of the run", labels=["reason"])
        for reason, count in counts.items():
            family.add_metric([reason], count)
        yield family
