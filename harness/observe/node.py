"""What a node says about itself: space on its mounts, pressure stalls, and what the agent costs."""

import os
import resource
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from harness.observe.collector import CollectorDisabled

PROC = Path("/proc")
CGROUP_ROOTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))
"""Where cgroup v2 is mounted: alone, or beside v1."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class FilesystemCollector:
    """Free space and inodes of one mount. One collector per mount, in `Background`: statvfs hangs with its server."""

    def __init__(self, mount: str) -> None:
        self.name = f"filesystem:{mount}"
        self._mount = mount

    def collect(self) -> Iterable[Metric]:
        stat = os.statvfs(self._mount)
        text = "Bytes that an ordinary user may still write"
        avail = GaugeMetricFamily("harness_node_filesystem_avail_bytes", text, labels=["mount"])
        avail.add_metric([self._mount], stat.f_bavail * stat.f_frsize)
        yield avail
        if stat.f_files:  # file systems without an inode table say 0 of 0
            inodes = GaugeMetricFamily(
                "harness_node_filesystem_inodes_free", "Files that can still be made", labels=["mount"]
            )
            inodes.add_metric([self._mount], stat.f_favail)
            yield inodes


class PressureCollector:
    """Pressure stall information of the host and, where cgroup v2 has it, of the job."""

    name = "pressure"

    def __init__(self, proc: Path = PROC, cgroup_roots: Iterable[Path] = CGROUP_ROOTS) -> None:
        self._files = [("host", r, proc / "pressure" / r) for r in ("cpu", "memory", "io")]
        job = _job_cgroup(proc, cgroup_roots)
        if job is not None:
            self._files += [("job", r, job / f"{r}.pressure") for r in ("cpu", "memory", "io")]

    def collect(self) -> Iterable[Metric]:
        labels = ["resource", "kind", "scope"]
        text = "Time in which tasks stalled for want of a resource"
        family = CounterMetricFamily("harness_node_pressure_seconds_total", text, labels=labels)
        for scope, name, path in self._files:
            try:
                lines = path.read_text().splitlines()
            except OSError:  # not in this kernel, or switched off (psi=0)
                continue
            for line in lines:  # some avg10=0.00 avg60=0.00 avg300=0.00 total=4324686
                kind, *fields = line.split()
                family.add_metric([name, kind, scope], int(fields[-1].removeprefix("total=")) / 1e6)
        if not family.samples:
            raise CollectorDisabled("the kernel gives no pressure stall information")
        yield family


class AgentCostCollector:
    """CPU and memory of this process, without its children."""

    name = "agent"

    def collect(self) -> Iterable[Metric]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        cpu = usage.ru_utime + usage.ru_stime
        yield CounterMetricFamily("harness_agent_cpu_seconds_total", "CPU time of the agent itself", value=cpu)
        resident = int((PROC / "self/statm").read_text().split()[1]) * PAGE_BYTES
        yield GaugeMetricFamily("harness_agent_resident_bytes", "Memory of the agent itself", value=resident)


def _job_cgroup(proc: Path, roots: Iterable[Path]) -> Path | None:
    """The cgroup v2 folder of the job: Slurm's `job_N` above this process, else the process's own. None at the root."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    if not own:
        return None
    parts = own.split("/")
    job = next((index + 1 for index, part in enumerate(parts) if part.startswith("job_")), len(parts))
    for root in roots:
        folder = root.joinpath(*parts[:job])
        if (folder / "memory.pressure").exists():
            return folder
    return None
