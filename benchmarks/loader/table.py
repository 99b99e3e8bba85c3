"""What was measured, as Markdown."""

import platform
import statistics
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Run:
    """One run of one program; `tokens_per_second` None: it did not work, and `error` says why."""

    program: str
    workers: int
    tokens_per_second: float | None
    peak_mb: float = 0.0
    error: str = ""
    versions: dict[str, str] = field(default_factory=dict)


def machine() -> str:
    """Processor, cores and Python of this machine."""
    name = platform.processor() or platform.machine()
    with open("/proc/cpuinfo") as lines:
        cpus = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{cpus[0] if cpus else name}, {len(cpus)} cores; Python {platform.python_version()}"


def speed_table(runs: list[Run]) -> str:
    """A row per program and number of workers in the order they came first: medians, and the ratio to the harness's best."""
    groups: dict[tuple[str, int], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.program, run.workers), []).append(run)
    medians = {key: _median(group) for key, group in groups.items()}
    best = max((median for (name, _), median in medians.items() if name == "harness" and median), default=None)
    lines = [
        "| program | workers | M tokens/s | min | max | of harness | peak MB | runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (name, workers), group in groups.items():
        rates = [run.tokens_per_second / 1e6 for run in group if run.tokens_per_second]
        kind = "threads" if name == "harness" else "processes"
        head = f"| {name} | {workers} {kind} |"
        if not rates:
            lines.append(f"{head} {group[0].error} | | | | | {len(group)} |")
            continue
        median = statistics.median(rates)
        ratio = f"{1e6 * median / best:.2f}" if best else ""
        peak = max(run.peak_mb for run in group)
        lines.append(
            f"{head} {median:.1f} | {min(rates):.1f} | {max(rates):.1f} | {ratio} | {peak:.0f} | {len(group)} |"
        )
    return "\n".join(lines)


def versions_line(runs: list[Run]) -> str:
    """Versions of all packages that took part; those of several programs may differ."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for package, version in run.versions.items():
            found.setdefault(package, set()).add(version)
    return ", ".join(f"{package} {' and '.join(sorted(found[package]))}" for package in sorted(found))


@dataclass(frozen=True)
class Seek:
    """Starting a loader at a step of a long run."""

    step: int
    first_batch_seconds: float
    """From making the loader to its first batch."""
    order_seconds: float
    """To look a sample of that step up."""
    rss_mb: float
    """Of the process, once the queue is full and batches have been taken."""


def seek_table(seeks: list[Seek]) -> str:
    """A row per step."""
    lines = ["| step | first batch s | one sample looked up ms | RSS MB |", "|---|---|---|---|"]
    lines += [
        f"| {seek.step:,} | {seek.first_batch_seconds:.3f} | {1000 * seek.order_seconds:.2f} | {seek.rss_mb:.0f} |"
        for seek in seeks
    ]
    spread = max(seek.rss_mb for seek in seeks) - min(seek.rss_mb for seek in seeks)
    return "\n".join([*lines, "", f"RSS differs by {spread:.0f} MB between these steps."])


def _median(runs: list[Run]) -> float | None:
    rates = [run.tokens_per_second for run in runs if run.tokens_per_second]
    return statistics.median(rates) if rates else None
