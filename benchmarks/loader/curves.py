"""From the times at which steps were done to throughput curves, and to what a stretch of time has cost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.loader.consume import STEP_SECONDS


@dataclass(frozen=True)
class Curve:
    """One trainer: when its steps were done, in seconds from the beginning, ascending."""

    label: str
    steps: Sequence[float]
    waits: Sequence[float]
    """Seconds that each step waited for its batch."""
    color: str
    failed: bool = False
    """It ended before its time."""


def rate(steps: Sequence[float], begin: float, end: float) -> float:
    """Steps per second between two moments."""
    done = np.asarray(steps)
    return float(((done > begin) & (done <= end)).sum()) / (end - begin)


def lost(steps: Sequence[float], usual: tuple[float, float], begin: float, end: float) -> float:
    """Share of the steps that is missing between `begin` and `end`, by the rate of the stretch `usual`; 0.02 is two percent."""
    expected = rate(steps, *usual)
    if expected == 0:
        raise ValueError(f"no step between {usual[0]:g} and {usual[1]:g} s: nothing to compare with")
    return 1 - rate(steps, begin, end) / expected


def waited(curve: Curve, begin: float, end: float) -> float:
    """Share of the time between `begin` and `end` in which the trainer waited for data: the throughput that this has cost."""
    total = 0.0
    for done, seconds in zip(curve.steps, curve.waits, strict=True):
        since = done - STEP_SECONDS - seconds
        total += max(0.0, min(done - STEP_SECONDS, end) - max(since, begin))
    return total / (end - begin)


def draw(
    curves: Sequence[Curve], expected: float, shaded: Sequence[tuple[float, float, str]], end: float, path: Path
) -> None:
    """Throughput in percent of `expected` steps per second, a panel per curve; `shaded`: (begin, end, what happens)."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    width = 5.0  # of the moving average, in seconds
    moments = np.arange(width, end, 0.5)
    figure, panels = plt.subplots(len(curves), 1, figsize=(10, 2.2 * len(curves)), sharex=True, squeeze=False)
    for panel, curve in zip(panels[:, 0], curves, strict=True):
        for begin, stop, _ in shaded:
            panel.axvspan(begin, stop, color="#f2c9a1" if stop - begin >= 60 else "#e59a9a", alpha=0.55, linewidth=0)
        percent = [100 * rate(curve.steps, moment - width, moment) / expected for moment in moments]
        panel.plot(moments, percent, color=curve.color, linewidth=1.6)
        if curve.failed and len(curve.steps):
            panel.annotate(
                "ends: bus error", (curve.steps[-1], 4), xytext=(6, 12), textcoords="offset points", fontsize=9
            )
        panel.set_ylim(0, 118)
        panel.set_xlim(0, end)
        panel.set_ylabel("% of full speed")
        panel.set_title(curve.label, loc="left", fontsize=10)
        panel.grid(alpha=0.3)
    for begin, stop, text in shaded:
        panels[0, 0].text((begin + stop) / 2, 109, text, ha="center", va="center", fontsize=8.5)
    panels[-1, 0].set_xlabel("seconds")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
