"""Which source each sample of a run comes from, and how many samples of that source came before it.

Each stage is cut into blocks. How many samples of each source lie before a block follows from the weights alone, so shares
never drift, and `harness.data.shares` lays out the block: any sample is found by the work for one block. A source's samples
are counted on across stages and changes of the mixture, in the order in which they come: no number is left out, and none
comes twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import gcd, lcm

import numpy as np

from harness.config.schema import MixtureChange, StageConfig
from harness.data.errors import DataError
from harness.data.permutation import derive_key
from harness.data.shares import LARGEST_TOTAL, Draws, apportion, mixed, schedule
from harness.data.token_files import TokenSource

BLOCK = 4096
"""Samples in a block, about; at most, where the weights allow blocks in which each source has exactly its share."""
LONGEST_BLOCK = 1 << 16
"""Samples up to which a block may grow for that. Else shares are rounded at its ends."""
ROUNDED_BLOCK = 1 << 14
"""Samples in a block whose ends are rounded."""
KEPT_BLOCKS = 4
"""Blocks that are remembered: batches that follow each other share one."""
LEAST_SHARE = Fraction(1, 10**6)
"""Of the samples. A smaller weight would need blocks of millions of samples."""

key = lru_cache(maxsize=4096)(derive_key)
"""`derive_key`, remembered."""


@dataclass(frozen=True)
class Part:
    """The stages that the run follows from the batch `step` on, until the next part begins."""

    step: int
    stages: tuple[StageConfig, ...]
    label: str
    """What messages call the stages."""


@dataclass(frozen=True)
class _Stage:
    """A stage with its weights as whole numbers and its place in the run."""

    number: int
    label: str
    """What messages call it."""
    start: int
    """First sample."""
    weights: tuple[int, ...]
    """Of all sources, without a common divisor."""
    block: int
    """Samples in a block."""
    first: np.ndarray
    """Samples of each source before this stage: int64 [sources]."""

    def before(self, block: int) -> np.ndarray:
        """Samples of each source in the stage before a block, rounded: int64 [sources]."""
        return np.array(apportion(self.weights, block * self.block), dtype=np.int64)

    @property
    def exact(self) -> bool:
        """Whether each block holds exactly its share of every source, so that all blocks are alike."""
        return self.block % sum(self.weights) == 0


@dataclass(frozen=True)
class _Block:
    """The places of a block."""

    sources: np.ndarray
    """Number of the source of each: int32 [places]."""
    counts: np.ndarray
    """Samples of that source before it, counted from the start of the run: int64 [places]."""


class Mixture:
    """Source and count of every sample, for the sources of `data.sources` by their numbers.

    `stages` end with the optimizer step `until_step`, counted from 1, and the last one never ends; from the step of each of
    `changes` on others are followed. Raises DataError where they cannot be. `warnings` says what was adjusted.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        windows: np.ndarray,
        stages: Sequence[StageConfig],
        changes: Sequence[MixtureChange],
        *,
        seed: int,
        seq_len: int,
        global_batch_size: int,
    ) -> None:
        """`windows`: how many each source has, int64 [sources]."""
        self.parts = mixture_parts(stages, changes)
        self.warnings: list[str] = []
        self._sources, self._windows = sources, windows
        self._seed, self._seq_len, self._batch = seed, seq_len, global_batch_size
        self._stages = self._build()
        self._starts = np.array([stage.start for stage in self._stages], dtype=np.int64)
        self._block = lru_cache(maxsize=KEPT_BLOCKS)(lambda number, block: self._lay_out(self._stages[number], block))

    def samples(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For int64 [n]: numbers of the sources, and how many samples of that source came before, both int64 [n]."""
        stages = np.searchsorted(self._starts, indices, side="right") - 1
        sources, counts = np.empty_like(indices), np.empty_like(indices)
        for number in np.unique(stages).tolist():
            members = np.flatnonzero(stages == number)
            blocks, places = np.divmod(indices[members] - self._stages[number].start, self._stages[number].block)
            for block in np.unique(blocks).tolist():
                inside = blocks == block
                found = self._block(number, block)
                sources[members[inside]] = found.sources[places[inside]]
                counts[members[inside]] = found.counts[places[inside]]
        return sources, counts

    def stage_of(self, index: int) -> str:
        """The stage that a sample belongs to, as messages call it."""
        return self._stages[int(np.searchsorted(self._starts, index, side="right") - 1)].label

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first `samples` of the run: int64 [sources]."""
        return self._counts(self._stages[int(np.searchsorted(self._starts, samples, side="right") - 1)], samples)

    def _counts(self, stage: _Stage, samples: int) -> np.ndarray:
        """The same, of samples that lie in `stage` or right behind it."""
        block, places = divmod(samples - stage.start, stage.block)
        counts = stage.first + stage.before(block)
        if places:
            found = self._lay_out(stage, block)
            counts += np.bincount(found.sources[:places], minlength=len(counts))
        return counts

    def _lay_out(self, stage: _Stage, block: int) -> _Block:
        before, behind = stage.before(block), stage.before(block + 1)
        if stage.exact:
            draws = _exact_draws(stage.weights, stage.block)
        else:
            draws = schedule(stage.weights, block * stage.block, before.tolist(), behind.tolist())
        sources = mixed(draws, key(self._seed, "mixture", stage.number, block))
        taken = behind - before
        starts = stage.first + before - (np.cumsum(taken) - taken)
        counts = np.empty(len(sources), dtype=np.int64)
        counts[np.argsort(sources, kind="stable")] = np.arange(len(sources)) + np.repeat(starts, taken)
        return _Block(sources, counts)

    def _build(self) -> list[_Stage]:
        built: list[_Stage] = []
        first = np.zeros(len(self._sources), dtype=np.int64)
        for part, following in zip(self.parts, [*self.parts[1:], None], strict=True):
            start = (part.step - 1) * self._batch
            cut = None if following is None else (following.step - 1) * self._batch
            for index, config in enumerate(part.stages):
                label = f"{part.label}[{index}] ({config.name})"
                weights = self._weights(f"{label}.weights", config)
                length = self._length(label, config, start, last=index == len(part.stages) - 1)
                end = min((point for point in (cut, None if length is None else start + length) if point is not None),
                          default=None)  # fmt: skip
                if end is not None and end <= start:
                    continue  # the change comes before this stage would have
                stage = _Stage(len(built), label, start, weights, _block_of(sum(weights)), first)
                built.append(stage)
                if end is not None:
                    start, first = end, self._counts(stage, end)
        return built

    def _length(self, label: str, stage: StageConfig, start: int, *, last: bool) -> int | None:
        """Samples that a stage is planned with; None: endless."""
        if last:
            return None
        length = (stage.until_step or 0) * self._batch - start
        if length <= 0:
            raise DataError(
                f"{label}.until_step={stage.until_step}: must be a step after what comes before it, which ends with step "
                f"{start // self._batch}"
            )
        return length

    def _weights(self, label: str, stage: StageConfig) -> tuple[int, ...]:
        """The weights as whole numbers, for all sources."""
        names = [source.name for source in self._sources]
        unknown = sorted(set(stage.weights) - set(names))
        if unknown:
            raise DataError(f"{label} names {', '.join(unknown)}: no such source; there are {', '.join(names)}")
        if not all(0 <= weight < float("inf") for weight in stage.weights.values()):
            raise DataError(f"{label}={dict(stage.weights)}: must be finite and not negative")
        shares = [Fraction(str(float(stage.weights.get(name, 0)))) for name in names]  # 0.1 means one tenth
        total = sum(shares, Fraction(0))
        if total == 0:
            raise DataError(f"{label} sum to 0: give at least one source a weight")
        for source, windows, share in zip(self._sources, self._windows, shares, strict=True):
            if share and share / total < LEAST_SHARE:
                raise DataError(f"{label}.{source.name}={float(share)}: under a millionth of the samples; leave it out")
            if share and not windows:
                raise DataError(
                    f"{label}.{source.name}={float(share)}: {source.key} holds no sample of data.seq_len={self._seq_len}: "
                    "use more text or a shorter data.seq_len"
                )
        if abs(total - 1) > Fraction(1, 10**9):
            self.warnings.append(f"{label} sum to {float(total):.6g}: divided by that sum")
        scale = lcm(*(share.denominator for share in shares))
        whole = [int(share * scale) for share in shares]
        divisor = gcd(*whole)
        if sum(whole) > LARGEST_TOTAL * divisor:
            return tuple(weight * LARGEST_TOTAL // sum(whole) for weight in whole)
        return tuple(weight // divisor for weight in whole)


@lru_cache(maxsize=8)
def _exact_draws(weights: tuple[int, ...], block: int) -> Draws:
    """What all blocks have in common where each holds exactly its share of every source."""
    return schedule(weights, 0, [0] * len(weights), apportion(weights, block))


def _block_of(total: int) -> int:
    """Samples in a block of a stage whose weights, as whole numbers, sum to `total`."""
    return ROUNDED_BLOCK if total > LONGEST_BLOCK else total * max(1, BLOCK // total)


def mixture_parts(stages: Sequence[StageConfig], changes: Sequence[MixtureChange]) -> list[Part]:
    """`data.stages` and the entries of `data.change_at`, in order. Raises DataError where a part is empty or out of order."""
    parts = [Part(1, tuple(stages), "data.stages")]
    for number, change in enumerate(changes):
        label = f"data.change_at[{number}]"
        if change.step <= parts[-1].step:
            raise DataError(
                f"{label}.step={change.step}: must be a step after {parts[-1].step}, "
                + ("the first of the run" if not number else "that of the entry before it")
            )
        parts.append(Part(change.step, tuple(change.stages), f"{label}.stages"))
    if empty := [part.label for part in parts if not part.stages]:
        raise DataError(f"{empty[0]} is empty: give at least one stage")
    return parts
