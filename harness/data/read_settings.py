"""How a loader reads: how far ahead, how patiently, and from where else when a file does not answer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from harness.config.schema import DataConfig, SourceConfig
from harness.data.origins import is_url

MOST_THREADS = 64
"""Reads that one loader may have under way at once, those that hang included."""


@dataclass(frozen=True)
class ReadSettings:
    """The keys of `data` that bear on reading, under their own names without `read_`."""

    ahead_bytes: int = 256 << 20
    threads: int = 4
    slow_seconds: float = 0.25
    hedge_seconds: float = 3.0
    timeout_seconds: float = 30.0
    give_up_seconds: float = 600.0
    verify: bool = True
    replicas: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Name of a source -> folders or URLs that hold copies of its files, the first to be asked first."""

    @classmethod
    def of(cls, data: DataConfig, sources: Mapping[str, SourceConfig]) -> Self:
        """What `data` says, for `data.sources` or `data.validation`."""
        return cls(
            ahead_bytes=data.read_ahead_bytes,
            threads=data.read_threads,
            slow_seconds=data.slow_read_seconds,
            hedge_seconds=data.hedge_seconds,
            timeout_seconds=data.read_timeout_seconds,
            give_up_seconds=data.give_up_seconds,
            verify=data.verify_reads,
            replicas={name: _elsewhere(source) for name, source in sources.items()},
        )

    def problems(self) -> Iterator[str]:
        """One sentence for each setting that makes no sense."""
        if not 1 <= self.threads <= MOST_THREADS:
            yield f"data.read_threads={self.threads}: must be at least 1 and at most {MOST_THREADS}"
        if not 0 < self.hedge_seconds <= self.timeout_seconds <= self.give_up_seconds < float("inf"):
            yield (
                f"data.hedge_seconds={self.hedge_seconds:g}, data.read_timeout_seconds={self.timeout_seconds:g}, "
                f"data.give_up_seconds={self.give_up_seconds:g}: must be positive, finite and in rising order"
            )

    def batches(self, samples: int, seq_len: int) -> int:
        """How many batches of so many samples are kept ahead. Raises ValueError that says what two of them take."""
        size = batch_bytes(samples, seq_len)
        if self.ahead_bytes < 2 * size:
            raise ValueError(
                f"data.read_ahead_bytes={self.ahead_bytes}: must hold at least two batches, and a rank's batch of {samples} "
                f"sequences of data.seq_len={seq_len} takes {size}. Set data.read_ahead_bytes={2 * size} or more, or use "
                "more data-parallel ranks."
            )
        return self.ahead_bytes // size


def _elsewhere(source: SourceConfig) -> tuple[str, ...]:
    """Its replicas, and the store itself where the run reads copies of what is in one."""
    return (*source.replicas, *([source.path] if is_url(source.path) else []))


def batch_bytes(samples: int, seq_len: int) -> int:
    """Memory that one batch of one rank takes while it waits."""
    return samples * (seq_len + 1) * 4
