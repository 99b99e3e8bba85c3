"""How the reader tells somebody else about its reads, without knowing whom."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stall:
    """A time in which a source's reads did not come back: begun, or over."""

    source: str
    path: str
    """Of the read that was late first."""
    offset: int
    reason: str
    seconds: float
    """Since that read was asked for."""
    reads: int
    """Reads that are late, or were."""
    served_by: str | None = None
    """Path that a late read came from in the end; None: the stall goes on."""


class ReadObserver(Protocol):
    """Told of every read of training data. Called from several threads at once; must be cheap and must not raise."""

    def register(self, keys: list[tuple[str, str]]) -> None:
        """Called once, before any read: (mount point, source name) of every key that later calls name by its index."""

    def started(self, slot: int, key: int) -> None:
        """Reading thread number `slot` begins a read of key number `key`."""

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        """The read is over."""

    def failed(self, slot: int, key: int, errno: int) -> None:
        """The read raised an OSError with this errno."""

    def timed_out(self, slot: int, key: int) -> None:
        """The read is not waited for any longer; it is still under way, and `finished` or `failed` may yet come."""

    def stall_began(self, stall: Stall) -> None:
        """Reads of a source are late."""

    def stall_ended(self, stall: Stall) -> None:
        """They have all come."""

    def queue(self, batches: int, cpu_seconds: float) -> None:
        """Batches ready now, and CPU seconds that the loader's threads have used so far."""


class NullObserver:
    """Listens to nothing."""

    def register(self, keys: list[tuple[str, str]]) -> None: ...

    def started(self, slot: int, key: int) -> None: ...

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None: ...

    def failed(self, slot: int, key: int, errno: int) -> None: ...

    def timed_out(self, slot: int, key: int) -> None: ...

    def stall_began(self, stall: Stall) -> None: ...

    def stall_ended(self, stall: Stall) -> None: ...

    def queue(self, batches: int, cpu_seconds: float) -> None: ...
