"""How fast the run is, should be, and could be."""

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.run.files import read_json, write_json

PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}
"""Dense bf16 peak of one GPU in FLOP/s by a part of its name, as the vendor states it for the SXM module. A GPU that is
not listed gets no MFU rather than a wrong one."""
NOT_SXM = ("PCIE", "NVL", "MIG")
"""Variants of the same name with another peak."""
WARMUP_STEPS = 20
SAMPLED_STEPS = 20
FASTER = 0.97
"""Share of the known step time below which a new median replaces it."""


def peak_flops(device_name: str) -> float | None:
    """Peak of the GPU that calls itself `device_name`; None where it is not known."""
    name = device_name.upper()
    if any(variant in name for variant in NOT_SXM):
        return None
    return next((peak for part, peak in PEAK_FLOPS.items() if part in name), None)


@dataclass(frozen=True)
class Calibration:
    """What a normal step of this run is, measured by the run itself."""

    step_seconds: float
    tokens_per_second: float
    world_size: int
    tokens_per_step: int


class Calibrator:
    """Takes medians of stretches of steps after a warm-up and keeps the fastest in the run folder for restarts.

    The fastest, so that a slow start does not become the norm, and a slow stretch or a restart on a slow node is seen as
    slow. Another number of ranks or another batch is measured anew.
    """

    def __init__(self, path: Path, world_size: int, tokens_per_step: int, steps: int) -> None:
        self._path = path
        self._world_size = world_size
        self._tokens_per_step = tokens_per_step
        self._skip = min(WARMUP_STEPS, steps // 5)
        self._wanted = max(1, min(SAMPLED_STEPS, steps // 5))
        self._seconds: list[float] = []
        self.found = self._read()
        """The calibration, once there is one."""

    def step_done(self, seconds: float) -> Calibration | None:
        """Count a step; the calibration where this step brought a first or a clearly faster one."""
        if self._skip:
            self._skip -= 1
            return None
        self._seconds.append(seconds)
        if len(self._seconds) < self._wanted:
            return None
        median = statistics.median(self._seconds)
        self._seconds.clear()
        if self.found is not None and median > FASTER * self.found.step_seconds:
            return None
        self.found = Calibration(median, self._tokens_per_step / median, self._world_size, self._tokens_per_step)
        return self.found

    def keep(self) -> None:
        """Write it to the run folder. Raises OSError."""
        assert self.found is not None
        write_json(self._path, asdict(self.found))

    def _read(self) -> Calibration | None:
        try:
            record: Any = read_json(self._path)
            known = Calibration(**record) if record else None
        except (OSError, ValueError, TypeError):
            return None  # half a file or another version's: measured again
        if known is None or (known.world_size, known.tokens_per_step) != (self._world_size, self._tokens_per_step):
            return None
        return known
