"""Which source each sample of a run comes from, and how many samples of that source came before it.

Each stage is cut into blocks of a fixed number of samples. How many samples of each source lie before a block follows from
the weights by exact rounding, so shares never drift; inside a block the sources are shuffled by a keyed permutation. A
source's samples are counted on across stages. So any sample is found in O(number of sources).

A change of the mixture may end a stage anywhere in a block. The numbers that the block has not used yet come first in what
follows, so that each source's count still has no gap and no number twice. They are all that is ever stored.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm

import numpy as np

from harness.config.schema import MixtureChange, StageConfig
from harness.data.errors import DataError
from harness.data.permutation import derive_key, permute
from harness.data.token_files import TokenSource

MIN_BLOCK = 4096
"""Samples over which the shares of the sources are exact, unless a small weight needs more."""
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
    length: int | None
    """Samples that it was planned with, which decide its blocks; None: endless."""
    end: int | None
    """First sample after it: of its planned end or of the change that cuts it short. None: never."""
    cumulative: tuple[int, ...]
    """Weights of all sources before each one, and of all of them: [sources + 1]."""
    block: int
    """Samples in a block: a power of two, at least two of each source with a weight."""
    first: np.ndarray
    """How far each source has been counted before: int64 [sources]."""
    left: tuple[np.ndarray, ...]
    """Numbers below `first` that no sample has yet, for each source, in rising order: they go first."""

    @property
    def taken(self) -> np.ndarray:
        """Samples of each source before this stage: int64 [sources]."""
        return self.first - np.array([len(numbers) for numbers in self.left])

    def before(self, position: int) -> np.ndarray:
        """Samples of sources before source j among the first `position` of the stage, by exact rounding: int64 [sources + 1]."""
        total = self.cumulative[-1]
        return np.array([(2 * position * part + total) // (2 * total) for part in self.cumulative], dtype=np.int64)

    def last_block(self) -> int:
        """Number of the last block. It takes in what is left of the stage, so that no block is too small to round in."""
        return 2**62 if self.length is None else max(0, self.length // self.block - 1)

    def block_span(self, block: int) -> tuple[int, int]:
        """First position of a block and of the one after it."""
        end = (block + 1) * self.block
        return block * self.block, self.length if self.length is not None and block == self.last_block() else end

    def block_of(self, position: np.ndarray) -> np.ndarray:
        """Number of the block of each position."""
        return np.minimum(position // self.block, self.last_block())

    def number_of(self, sources: np.ndarray, within: np.ndarray) -> np.ndarray:
        """The sources' own count of their samples, from 0 over the whole run, by their count in the stage: int64 [n]."""
        numbers = self.first[sources] + within
        if any(map(len, self.left)):
            lengths = np.array([len(left) for left in self.left])
            numbers -= lengths[sources]
            again = np.flatnonzero(within < lengths[sources])
            begins = np.cumsum(lengths) - lengths
            numbers[again] = np.concatenate(self.left)[begins[sources[again]] + within[again]]
        return numbers


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

    def samples(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For int64 [n]: numbers of the sources, and how many samples of that source came before, both int64 [n]."""
        stages = np.searchsorted(self._starts, indices, side="right") - 1
        sources, counts = np.empty_like(indices), np.empty_like(indices)
        for number in np.unique(stages):
            stage, members = self._stages[number], np.flatnonzero(stages == number)
            positions = indices[members] - stage.start
            blocks = stage.block_of(positions)
            for block in np.unique(blocks):
                inside = blocks == block
                found, within = self._in_block(stage, int(block), positions[inside])
                sources[members[inside]], counts[members[inside]] = found, stage.number_of(found, within)
        return sources, counts

    def stage_of(self, index: int) -> str:
        """The stage that a sample belongs to, as messages call it."""
        return self._stages[int(np.searchsorted(self._starts, index, side="right") - 1)].label

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first `samples` of the run, within one block of exact: int64 [sources]."""
        stage = self._stages[int(np.searchsorted(self._starts, samples, side="right") - 1)]
        taken: np.ndarray = stage.taken + np.diff(stage.before(samples - stage.start))
        return taken

    def _in_block(self, stage: _Stage, block: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position int64 [n], and how many samples of it the stage counts before that one."""
        begin, end = stage.block_span(block)
        slots = permute(positions - begin, end - begin, key(self._seed, "mixture", stage.number, block))
        return self._of_slots(stage, block, slots)

    def _of_slots(self, stage: _Stage, block: int, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for places in the block before it was shuffled, where each source's lie side by side."""
        begin, end = stage.block_span(block)
        before = stage.before(begin)
        cuts = stage.before(end) - before
        sources = np.searchsorted(cuts[1:], slots, side="right")
        return sources, (np.diff(before) - cuts[:-1])[sources] + slots

    def _build(self) -> list[_Stage]:
        built: list[_Stage] = []
        first, left = np.zeros(len(self._sources), dtype=np.int64), (np.zeros(0, dtype=np.int64),) * len(self._sources)
        for part, following in zip(self.parts, [*self.parts[1:], None], strict=True):
            start = (part.step - 1) * self._batch
            cut = None if following is None else (following.step - 1) * self._batch
            for index, config in enumerate(part.stages):
                label = f"{part.label}[{index}] ({config.name})"
                cumulative, smallest = self._weights(f"{label}.weights", config)
                length = self._length(label, config, start, last=index == len(part.stages) - 1)
                end = min((point for point in (cut, None if length is None else start + length) if point is not None),
                          default=None)  # fmt: skip
                if end is not None and end <= start:
                    continue  # the change comes before this stage would have
                block = max(MIN_BLOCK, 1 << (-(-2 * cumulative[-1] // smallest) - 1).bit_length())
                stage = _Stage(len(built), label, start, length, end, cumulative, block, first, left)
                built.append(stage)
                if end is not None:
                    start, (first, left) = end, self._after(stage, end - stage.start)
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

    def _after(self, stage: _Stage, done: int) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """`first` and `left` of what follows on the first `done` samples of a stage."""
        whole, unused = done, np.zeros(0, dtype=np.int64)
        sources = unused
        block = int(stage.block_of(np.array(done)))
        begin, end = stage.block_span(block)
        if begin < done < end:
            shuffle = key(self._seed, "mixture", stage.number, block)
            free = np.ones(end - begin, dtype=bool)
            free[permute(np.arange(done - begin), end - begin, shuffle)] = False
            sources, within = self._of_slots(stage, block, np.flatnonzero(free))
            whole, unused = end, stage.number_of(sources, within)
        counted = np.diff(stage.before(whole))
        left = tuple(
            np.concatenate([unused[sources == number], numbers[counted[number] :]])
            for number, numbers in enumerate(stage.left)
        )
        lengths = np.array([len(numbers) for numbers in stage.left])
        return stage.first + np.maximum(0, counted - lengths), left

    def _weights(self, label: str, stage: StageConfig) -> tuple[tuple[int, ...], int]:
        """The weights as whole numbers, cumulative over all sources; and the smallest one above 0."""
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
        return (0, *(sum(whole[: end + 1]) for end in range(len(whole)))), min(filter(None, whole))


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
