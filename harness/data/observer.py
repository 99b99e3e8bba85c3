"""How the reader tells somebody else about its reads, without knowing whom."""

from typing import Protocol


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

    def queue(self, batches: int, cpu_seconds: float) -> None:
        """Batches ready now, and CPU seconds that the loader's threads have used so far."""


class NullObserver:
    """Listens to nothing."""

    def register(self, keys: list[tuple[str, str]]) -> None: ...

    def started(self, slot: int, key: int) -> None: ...

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None: ...

    def failed(self, slot: int, key: int, errno: int) -> None: ...

    def queue(self, batches: int, cpu_seconds: float) -> None: ...
