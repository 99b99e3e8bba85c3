"""Puts together what a node exports: which collectors, on which clock, under which address."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from harness.config.layout import layout
from harness.config.schema import MonitorMode, RootConfig
from harness.data.copies import mount_point
from harness.data.origins import is_url
from harness.data.stage_status import status_path
from harness.observe.boards import BoardsCollector
from harness.observe.canary import CanaryCollector, CanaryMount
from harness.observe.collector import Background, Collector
from harness.observe.exporter import Exporter, ExporterError
from harness.observe.node import AgentCostCollector, FilesystemCollector, PressureCollector
from harness.observe.nvml import GpuCollector
from harness.observe.residency import ResidencyCollector
from harness.observe.run_info import RunInfo, RunInfoCollector
from harness.observe.staging import SpareCollector, StagingCollector
from harness.observe.targets import TargetRegistration
from harness.observe.xid import XidCollector
from harness.run.attempt import Attempt
from harness.run.folder import RunFolder
from harness.run.node import Node

GPU_SECONDS = 5.0
NODE_SECONDS = 10.0
RESIDENCY_SECONDS = 300.0
"""Between two looks at every token file: eviction takes hours, and the metadata server serves all nodes."""
ANY_ADDRESS = ("0.0.0.0", "::")
FILES_PER_SOURCE = 256
"""Token files of one source that the cold probe chooses from."""


class NodeMetrics:
    """The node's /metrics and its entry for discovery, from construction to `close`."""

    def __init__(
        self,
        config: RootConfig,
        run: RunFolder,
        attempt: Attempt,
        node: Node,
        boards: Path,
        restarts: Mapping[str, int],
    ) -> None:
        """`restarts` may change while this lives. A taken `monitor.port` costs the port, not the run: see the message."""
        self._config, self._run, self._attempt, self._node = config, run, attempt, node
        self._boards, self._restarts = boards, restarts
        self._registration: TargetRegistration | None = None
        self._exporter: Exporter | None = None
        self._canary: CanaryCollector | None = None
        if config.monitor.mode is not MonitorMode.off:
            self._serve()

    @property
    def url(self) -> str | None:
        """Where /metrics is, or None where monitoring is off."""
        if self._exporter is None:
            return None
        host, port = self._exporter.address
        return f"http://{host}:{port}/metrics"

    def close(self) -> None:
        """Withdraw from discovery, then stop serving."""
        for part in (self._registration, self._exporter, self._canary):
            if part is not None:
                part.close()

    def _serve(self) -> None:
        monitor, node = self._config.monitor, self._node
        host = monitor.host or node.address
        collectors = self._collectors()
        try:
            self._exporter = Exporter(collectors, host, monitor.port)
        except ExporterError as error:
            print(f"{error}; using a free port instead", flush=True)
            self._exporter = Exporter(collectors, host, 0)
        self._registration = TargetRegistration(
            Path(monitor.targets_dir),
            (node.address if host in ANY_ADDRESS else host, self._exporter.address[1]),
            run=self._run.name,
            attempt=self._attempt.number,
            node=node.name,
            slurm_job_id=node.job_id if node.on_slurm else "",
        )

    def _collectors(self) -> list[Collector | Background]:
        config, gpus = self._config, self._config.cluster.gpus_per_node
        record = self._run.record()
        info = RunInfo(
            run_id=record.get("run_id", ""),
            git_commit=record.get("git_commit", ""),
            config_hash=record.get("config_hash", ""),
            world_size=str(layout(config).world_size),
            gpu=_gpu_name() if gpus else "none",
        )
        collectors: list[Collector | Background] = [
            BoardsCollector(self._boards),
            RunInfoCollector(info, self._attempt.started, gpus, self._restarts if self._node.is_head else None),
            AgentCostCollector(),
            *(Background(FilesystemCollector(mount), NODE_SECONDS) for mount in _mounts(config, self._run)),
            Background(PressureCollector(), NODE_SECONDS),
        ]
        paths = {name: source.path for name, source in config.data.sources.items() if not is_url(source.path)}
        if self._node.is_head:  # the file system tells every node the same
            collectors.append(Background(ResidencyCollector(paths), RESIDENCY_SECONDS))
        if config.data.stage_to is not None:
            status = status_path(config.data.stage_to, config.run.name, self._node.name)
            collectors.append(Background(StagingCollector(status), NODE_SECONDS))
            if self._node.is_head:
                spares = SpareCollector(self._run.staging_dir, self._attempt.nodes)
                collectors.append(Background(spares, NODE_SECONDS))
        if gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            collectors += [Background(GpuCollector(visible), GPU_SECONDS), XidCollector(visible)]
        if config.monitor.canary_seconds > 0:
            self._canary = CanaryCollector(_canary_mounts(config, self._run), self._node.name)
            collectors.append(Background(self._canary, config.monitor.canary_seconds))
        return collectors


def _mounts(config: RootConfig, run: RunFolder) -> list[str]:
    """Mount points that the run depends on: its own folder's, those of its data and that of its copies."""
    data = [source.path for source in config.data.sources.values() if not is_url(source.path)]
    copies = [config.data.stage_to] if config.data.stage_to is not None else []
    return list(dict.fromkeys(mount_point(path) for path in (str(run.path), *data, *copies)))


def _canary_mounts(config: RootConfig, run: RunFolder) -> list[CanaryMount]:
    """The run folder's mount, that of staged copies and those of the data, each with its token files for the cold probe.

    The hot probe needs a small file of ours on the same mount: in the run folder where that is there, else beside the
    data set; a read-only mount goes without.
    """
    run_mount = mount_point(run.path)
    hot: dict[str, Path] = {run_mount: run.path}
    cold: dict[str, list[Path]] = {}
    if config.data.stage_to is not None and Path(config.data.stage_to).is_dir():
        hot.setdefault(mount_point(config.data.stage_to), Path(config.data.stage_to))
    for source in config.data.sources.values():
        if is_url(source.path):
            continue
        path = Path(source.path)
        folder = path if path.is_dir() else path.parent
        mount = mount_point(folder)
        hot.setdefault(mount, folder.parent if folder.parent.exists() else folder)
        cold.setdefault(mount, []).extend(sorted(folder.glob("*.ds"))[:FILES_PER_SOURCE])
    return [CanaryMount(mount, folder, tuple(cold.get(mount, ()))) for mount, folder in hot.items()]


def _gpu_name() -> str:
    """The first GPU's name by the driver's own tool, "unknown" where it does not say."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return result.stdout.strip()
