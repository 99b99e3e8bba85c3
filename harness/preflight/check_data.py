"""Opens all that the run reads, and goes to its last step as a resumed run would.

The real number of steps and the real files matter: a loader whose index grows with the steps passes every small test.
"""

import copy
import os
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.config.layout import layout
from harness.config.schema import ClusterKind, RootConfig
from harness.data.check import resolve_eos
from harness.data.errors import DataError
from harness.data.loader import Loader, StepBatch
from harness.data.observer import NullObserver
from harness.data.order import SampleOrder, open_order, repeats
from harness.data.origins import is_url
from harness.data.read_settings import ReadSettings
from harness.data.skips import Skips
from harness.data.token_files import TokenSource
from harness.launch.launch import readiness
from harness.preflight.finding import Finding, Subject
from harness.text import bytes_text, count_text

MOST_SECONDS = 300.0
"""That one batch may take. A read that hangs must not hang us."""
MOST_GROWTH = 256_000_000
"""Bytes of memory that the order and the loader may take, beside the batch itself."""
READ_THROUGH = 1.005
"""More often than this a source is repeated; below it is rounding."""


def check_data(subject: Subject) -> Finding:
    """Sources, held-out sources, what the run starts from, and the way to the last step."""
    config = subject.config
    if problems := _problems(config):
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)} with what the run reads"
        return Finding(count, failures=tuple(problems))
    if stored := [name for name, source in config.data.sources.items() if is_url(source.path)]:
        return Finding(
            f"{', '.join(stored)} in an object store: headers and a few blocks are sound; batches can be read once it is staged"
        )
    seek = _Seek(config)
    if failure := seek.run():
        return Finding("the last step can't be reached", failures=(failure,))
    order, sources = seek.order, seek.order.sources
    often = repeats(order, config.train.steps)
    growth_problem = _growth_problem(seek)
    return Finding(
        f"{_volume(sources)}; {', '.join(f'{name} {times:.3g}x' for name, times in often.items())} read through; "
        f"step {config.train.steps:,} reached in {seek.seconds:.2f} s, memory grew by {bytes_text(max(0, seek.growth))}",
        failures=(growth_problem,) if growth_problem else (),
        warnings=(*_too_short(config, order, often), *_slow_reads(config, seek.reads)),
        facts={
            "tokens": {source.name: source.tokens for source in sources},
            "repeats": often,
            "seek_seconds": seek.seconds,
            "memory_growth_bytes": seek.growth,
            "reads": len(seek.reads.seconds),
            "slowest_read_seconds": max(seek.reads.seconds, default=None),
        },
    )


def _problems(config: RootConfig) -> list[str]:
    """What the launcher would refuse, but for Slurm, which has a step of its own."""
    here = copy.deepcopy(config)
    here.cluster.kind = ClusterKind.local
    return readiness(here)


def _open(config: RootConfig) -> SampleOrder:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown with the plan
        return open_order(config.data, config.train.global_batch_size)


def _volume(sources: Sequence[TokenSource]) -> str:
    files, tokens = sum(len(source.files) for source in sources), sum(source.tokens for source in sources)
    return f"{count_text(tokens)} tokens in {files:,} file{'s' * (files != 1)}"


def _too_short(config: RootConfig, order: SampleOrder, often: dict[str, float]) -> list[str]:
    """Sources that hold fewer sequences than the run takes from them."""
    taken = order.counts(config.train.steps * config.train.global_batch_size)
    return [
        f"{windows.source.key} holds {windows.count:,} sequences and the run takes {count:,}: it is read "
        f"{often[windows.source.name]:.3g} times. Unless that is meant, give more text, fewer train.steps or a smaller weight"
        for windows, count in zip(order.windows, taken, strict=True)
        if often[windows.source.name] > READ_THROUGH
    ]


def _slow_reads(config: RootConfig, reads: "_Reads") -> list[str]:
    if not reads.slow:
        return []
    return [
        f"{reads.slow} of {len(reads.seconds)} reads took longer than data.slow_read_seconds={config.data.slow_read_seconds:g} "
        f"(the slowest {max(reads.seconds):.2f} s): run this once more; if it stays, the storage is cold or slow, and the data "
        "belongs on a faster one"
    ]


def _growth_problem(seek: "_Seek") -> str | None:
    if seek.growth <= MOST_GROWTH + seek.batch_bytes:
        return None
    return (
        f"going to the last step took {bytes_text(seek.growth)} of memory, beside the batch's {bytes_text(seek.batch_bytes)} no "
        f"more than {bytes_text(MOST_GROWTH)} is right: every rank would pay it. This is a fault of the loader or the order; "
        "report it with this step's --json"
    )


@dataclass
class _Reads(NullObserver):
    """Times the loader's reads. Appending is atomic, and so needs no lock."""

    seconds: list[float] = field(default_factory=list)
    slow_reads: list[float] = field(default_factory=list)

    @property
    def slow(self) -> int:
        return len(self.slow_reads)

    def finished(self, slot: int, key: int, seconds: float, bytes_read: int, slow: bool) -> None:
        self.seconds.append(seconds)
        if slow:
            self.slow_reads.append(seconds)


class _Seek:
    """The last batch of the run as its first data-parallel rank would read it."""

    order: SampleOrder

    def __init__(self, config: RootConfig) -> None:
        self._config = config
        self.reads = _Reads()
        self.seconds = 0.0
        self.growth = 0
        """Bytes by which this process has grown on the way, the batch included."""
        self.batch_bytes = 0

    def run(self) -> str | None:
        """Go there. Returns what was wrong, or None."""
        before, started = _resident_bytes(), time.perf_counter()
        try:
            self.order = _open(self._config)
            batch = self._batch()
        except DataError as error:
            return str(error)
        except RuntimeError:  # what a loader says that was closed
            return f"no batch within {MOST_SECONDS:.0f} s: the storage of data.sources hangs; look at its mount on this machine"
        self.seconds, self.growth = time.perf_counter() - started, _resident_bytes() - before
        arrays = [a for m in batch.micro_batches for a in (m.input_ids, m.labels, m.position_ids)]
        self.batch_bytes = 2 * sum(array.nbytes for array in arrays)  # and as much on the way there
        return None

    def _batch(self) -> StepBatch:
        config, data, train = self._config, self._config.data, self._config.train
        loader = Loader(
            self.order.sources,
            self.order,
            global_batch_size=train.global_batch_size,
            micro_batch_size=train.micro_batch_size,
            dp_rank=0,
            dp_size=layout(config).dp,
            start_step=train.steps - 1,
            stop_step=train.steps,
            seq_len=data.seq_len,
            eos_token_id=resolve_eos(data, self.order.sources),
            document_mask=data.document_mask,
            reading=ReadSettings.of(data, data.sources),
            observer=self.reads,
            vocab_size=config.model.vocab_size,
            skips=Skips(train.skip),
        )
        alarm = threading.Timer(MOST_SECONDS, loader.close)
        alarm.daemon = True
        alarm.start()
        with loader:
            try:
                return next(loader)
            finally:
                alarm.cancel()


def _resident_bytes() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
