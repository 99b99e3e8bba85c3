"""The order of all samples of a run: a pure function of (seed, stages, sample index).

Nothing grows with the number of steps. Each stage is cut into blocks of a fixed number of samples. How many samples of
each source lie before a block follows from the weights by exact rounding, so shares never drift; inside a block the
sources are shuffled by a keyed permutation. A source's samples are counted on across stages, and count number i reads
window `shuffle(i mod windows)` with another shuffle each epoch. So any sample is found in O(number of sources).
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import lcm
from typing import Any

import numpy as np

from harness.config.schema import StageConfig
from harness.data.errors import DataError
from harness.data.permutation import derive_key, permute
from harness.data.token_files import TokenSource
from harness.data.windows import Windows

MIN_BLOCK = 4096
"""Samples over which the shares of the sources are exact, unless a small weight needs more."""
FORMAT = 1
"""Raise when the same definition would give another order."""

_key = lru_cache(maxsize=4096)(derive_key)


@dataclass(frozen=True)
class _Stage:
    """A stage with its weights as whole numbers and its place in the run."""

    number: int
    start: int
    """First sample."""
    length: int | None
    """Samples; None: endless."""
    cumulative: tuple[int, ...]
    """Weights of all sources before each one, and of all of them: [sources + 1]."""
    block: int
    """Samples in a block: a power of two, at least two of each source with a weight."""
    taken: np.ndarray
    """Samples of each source in earlier stages: int64 [sources]."""

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


class SampleOrder:
    """Which window of which source is sample number i of the run.

    `sources` and the weights of `stages` go by name; `stages` end with the optimizer step `until_step`, counted from 1, and
    the last one never ends. Raises DataError where the stages cannot be followed. `warnings` says what was adjusted.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        stages: Sequence[StageConfig],
        *,
        seed: int,
        seq_len: int,
        global_batch_size: int,
    ) -> None:
        self.sources = tuple(sources)
        self.stages = tuple(stages)
        self.seed = seed
        self.seq_len = seq_len
        self.global_batch_size = global_batch_size
        self.warnings: list[str] = []
        self._names = [source.name for source in sources]
        self._windows = np.array([Windows(source, seq_len).count for source in sources], dtype=np.int64)
        self._stages = self._build()
        self._starts = np.array([stage.start for stage in self._stages], dtype=np.int64)
        for warning in self.warnings:
            warnings.warn(warning, stacklevel=2)

    def sample(self, index: int) -> tuple[int, int]:
        """(number of the source, window) of sample `index`, counted from 0 over the whole run."""
        sources, windows = self.samples(np.array([index]))
        return int(sources[0]), int(windows[0])

    def samples(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The same for int64 [n]: numbers of the sources int64 [n], windows int64 [n]."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and indices.min() < 0:
            raise IndexError(f"sample {indices.min()}: samples count from 0")
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        sources, counts = np.empty_like(indices), np.empty_like(indices)
        for number in np.unique(numbers):
            stage, members = self._stages[number], np.flatnonzero(numbers == number)
            positions = indices[members] - stage.start
            blocks = np.minimum(positions // stage.block, stage.last_block())
            for block in np.unique(blocks):
                inside = blocks == block
                sources[members[inside]], counts[members[inside]] = self._in_block(stage, int(block), positions[inside])
        return sources, self._shuffle_windows(sources, counts)

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first `samples` of the run, within one block of exact: int64 [sources]."""
        stage = self._stages[int(np.searchsorted(self._starts, samples, side="right") - 1)]
        return stage.taken + np.diff(stage.before(samples - stage.start))

    def definition(self) -> dict[str, Any]:
        """Everything that the order depends on, as JSON: two runs with one definition see the same samples."""
        used = {name for stage in self.stages for name, weight in stage.weights.items() if weight > 0}
        return {
            "format": FORMAT,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "global_batch_size": self.global_batch_size,
            "sources_in_order": ", ".join(name for name in self._names if name in used),
            "sources": {source.name: _identity(source) for source in self.sources if source.name in used},
            "stages": [
                {  # the last stage never ends, whatever until_step says: a longer run is the same run
                    "until_step": None if stage is self.stages[-1] else stage.until_step,
                    "weights": {name: float(stage.weights.get(name, 0)) for name in self._names if name in used},
                }
                for stage in self.stages
            ],
        }

    def _build(self) -> list[_Stage]:
        if self.global_batch_size < 1:
            raise DataError(f"train.global_batch_size={self.global_batch_size}: must be at least 1")
        if not self.stages:
            raise DataError("data.stages is empty: give at least one stage")
        built: list[_Stage] = []
        start, taken = 0, np.zeros(len(self.sources), dtype=np.int64)
        for number, config in enumerate(self.stages):
            last = number == len(self.stages) - 1
            cumulative, smallest = self._weights(number, config)
            length = None
            if not last:
                length = (config.until_step or 0) * self.global_batch_size - start
                if length <= 0:
                    raise DataError(
                        f"data.stages[{number}] ({config.name}).until_step={config.until_step}: must be a step after the "
                        f"stage before it, which ends with step {start // self.global_batch_size}"
                    )
            block = max(MIN_BLOCK, 1 << (-(-2 * cumulative[-1] // smallest) - 1).bit_length())
            stage = _Stage(number, start, length, cumulative, block, taken)
            built.append(stage)
            if length is not None:
                start, taken = start + length, taken + np.diff(stage.before(length))
        return built

    def _weights(self, number: int, stage: StageConfig) -> tuple[tuple[int, ...], int]:
        """The weights as whole numbers, cumulative over all sources; and the smallest one above 0."""
        label = f"data.stages[{number}] ({stage.name}).weights"
        unknown = sorted(set(stage.weights) - set(self._names))
        if unknown:
            raise DataError(f"{label} names {', '.join(unknown)}: no such source; there are {', '.join(self._names)}")
        if not all(0 <= weight < float("inf") for weight in stage.weights.values()):
            raise DataError(f"{label}={dict(stage.weights)}: must be finite and not negative")
        shares = [Fraction(str(float(stage.weights.get(name, 0)))) for name in self._names]  # 0.1 means one tenth
        total = sum(shares, Fraction(0))
        if total == 0:
            raise DataError(f"{label} sum to 0: give at least one source a weight")
        for source, windows, share in zip(self.sources, self._windows, shares, strict=True):
            if share and share / total < Fraction(1, 10**9):
                raise DataError(f"{label}.{source.name}={float(share)}: under a billionth of the samples; leave it out")
            if share and not windows:
                raise DataError(
                    f"{source.key} holds no sample of data.seq_len={self.seq_len}: use more "
                    "text or a shorter data.seq_len"
                )
        if abs(total - 1) > Fraction(1, 10**9):
            self.warnings.append(f"{label} sum to {float(total):.6g}: divided by that sum")
        scale = lcm(*(share.denominator for share in shares))
        whole = [int(share * scale) for share in shares]
        return (0, *(sum(whole[: end + 1]) for end in range(len(whole)))), min(filter(None, whole))

    def _in_block(self, stage: _Stage, block: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Source of each position int64 [n], and how many samples of that source came before it in the run."""
        begin, end = stage.block_span(block)
        before = stage.before(begin)
        cuts = stage.before(end) - before  # where each source's slots begin, in a block not yet shuffled
        slots = permute(positions - begin, end - begin, _key(self.seed, "mixture", stage.number, block))
        sources = np.searchsorted(cuts[1:], slots, side="right")
        return sources, (stage.taken + np.diff(before) - cuts[:-1])[sources] + slots

    def _shuffle_windows(self, sources: np.ndarray, counts: np.ndarray) -> np.ndarray:
        sizes = self._windows[sources]
        pairs, inverse = np.unique(np.stack([sources, counts // sizes]), axis=1, return_inverse=True)
        keys = np.array([_key(self.seed, "windows", self._names[source], int(epoch)) for source, epoch in pairs.T])
        return permute(counts % sizes, sizes, keys[inverse.reshape(-1)]) if len(sources) else counts


def repeats(order: SampleOrder, total_steps: int) -> dict[str, float]:
    """How often a run of `total_steps` sees each source: 0.5 is half of it, 2 is every window twice."""
    counts = order.counts(total_steps * order.global_batch_size)
    return {
        source.name: float(count / max(1, Windows(source, order.seq_len).count))
        for source, count in zip(order.sources, counts, strict=True)
    }


def _identity(source: TokenSource) -> dict[str, Any]:
    """A source by its content's outline, not by where it lies: the same files in another folder are the same source."""
    listing = json.dumps([[file.path.name, file.tokens] for file in source.files], separators=(",", ":"))
    digest = hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
    return {"files": len(source.files), "tokens": source.tokens, "token_size": source.token_size, "digest": digest}
