"""The order of all samples of a run: a pure function of (seed, stages, sample index).

Nothing grows with the number of steps. `harness.data.mixture` says which source a sample comes from and how many of that
source came before it; sample number i of a source reads window `shuffle(i mod windows)`, with another shuffle each epoch.
So in the order of the samples no window of a source comes again before all of its windows came, whatever the mixture.
"""

import hashlib
import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from harness.config.schema import DataConfig, MixtureChange, StageConfig
from harness.data.errors import DataError
from harness.data.mixture import Mixture, Part
from harness.data.packing import cut
from harness.data.shuffle import Blocks, shuffle_of, shuffled
from harness.data.token_files import TokenSource
from harness.data.windows import Windows, open_sources

FORMAT = 2
"""Raise when the same definition would give another order."""


class SampleOrder:
    """Which window of which source is sample number i of the run.

    `sources` and the weights of `stages` go by name; `stages` end with the optimizer step `until_step`, counted from 1, and
    the last one never ends, until one of `changes` takes its place. Raises DataError where they cannot be followed.
    `warnings` says what was adjusted.
    """

    def __init__(
        self,
        sources: Sequence[TokenSource],
        stages: Sequence[StageConfig],
        *,
        seed: int,
        seq_len: int,
        global_batch_size: int,
        changes: Sequence[MixtureChange] = (),
        blocks: Blocks | None = None,
        windows: Sequence[Windows] | None = None,
    ) -> None:
        """`blocks`: shuffle by blocks instead of all over each source. `windows`: how each source is cut, None: in chunks."""
        if global_batch_size < 1:
            raise DataError(f"train.global_batch_size={global_batch_size}: must be at least 1")
        self.sources = tuple(sources)
        self.windows = tuple(windows or (Windows(source, seq_len) for source in sources))
        self.seed = seed
        self.seq_len = seq_len
        self.global_batch_size = global_batch_size
        self._blocks = blocks
        self._names = [source.name for source in sources]
        self._sizes = np.array([found.count for found in self.windows], dtype=np.int64)
        self._mixture = Mixture(
            self.sources, self._sizes, stages, changes, seed=seed, seq_len=seq_len, global_batch_size=global_batch_size
        )
        self.warnings = self._mixture.warnings
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
        sources, counts = self._mixture.samples(indices)
        return sources, shuffled(self.seed, self._names, self._sizes, sources, counts, self._blocks)

    def stage_of(self, index: int) -> str:
        """The stage that sample `index` belongs to, for people: its key and its name."""
        return self._mixture.stage_of(index)

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first `samples` of the run: int64 [sources]."""
        return self._mixture.counts(samples)

    def windows_of(self, source: int, counts: np.ndarray) -> np.ndarray:
        """The windows that samples number `counts` (int64 [n]) of a source read, counted over the epochs: int64 [n]."""
        counts = np.asarray(counts, dtype=np.int64)
        return shuffled(self.seed, self._names, self._sizes, np.full(len(counts), source), counts, self._blocks)

    def definition(self) -> dict[str, Any]:
        """Everything that the order depends on but for later changes of the mixture, as JSON: two runs with one definition
        and the same `changes` see the same samples. What is as it always was before there was a choice is left out."""
        base = self._mixture.parts[0]
        choices: dict[str, Any] = {}
        if self._blocks is not None:
            choices["shuffle"] = {"block": self._blocks.block, "group": self._blocks.group}
        return {
            "format": FORMAT,
            "seed": self.seed,
            "seq_len": self.seq_len,
            "global_batch_size": self.global_batch_size,
            **choices,
            **self._definition_of(base),
        }

    def changes(self) -> list[dict[str, Any]]:
        """The changes of the mixture, each with all that it adds to the definition, as JSON."""
        return [{"step": part.step, **self._definition_of(part)} for part in self._mixture.parts[1:]]

    def _definition_of(self, part: Part) -> dict[str, Any]:
        used = used_sources(part.stages)
        return {
            "sources_in_order": ", ".join(name for name in self._names if name in used),
            "sources": {
                windows.source.name: {**_identity(windows.source), **windows.identity}
                for windows in self.windows
                if windows.source.name in used
            },
            "stages": stages_as_json(part.stages),
        }


def open_order(data: DataConfig, global_batch_size: int, *, build: bool = True, outlines: bool = False) -> SampleOrder:
    """The order that a config defines, with its token files opened. Raises DataError.

    Sources in an object store are opened by their copies on this node; with `outlines`, by what the store tells of them,
    which gives the same order where nothing is copied yet, and no tokens.

    Where `data.packing` needs tables, they are made first, by one process at a time; not so with `build` False, which
    raises `PackingMissing`.
    """
    sources = open_sources(
        [(name, source.path) for name, source in data.sources.items()],
        data.seq_len,
        packing=data.packing,
        stage_to=None if outlines else data.stage_to,
    )
    return SampleOrder(
        sources,
        data.stages,
        seed=data.seed,
        seq_len=data.seq_len,
        global_batch_size=global_batch_size,
        changes=data.change_at,
        blocks=shuffle_of(data),
        windows=[cut(source, data, build=build) for source in sources],
    )


def other_format(saved: object) -> str | None:
    """What is wrong with a checkpoint whose definition of the order has the format `saved`, if it says; None: nothing."""
    if saved in (None, FORMAT):
        return None
    return (
        f"its samples come in the order of format {saved}, and this version draws them in format {FORMAT}. Go on with the "
        "version of the harness that wrote it, or export it (python -m harness.export) and start a new run with "
        "model.init_from."
    )


def used_sources(stages: Sequence[StageConfig]) -> set[str]:
    """Names of the sources that have a weight in any of `stages`."""
    return {name for stage in stages for name, weight in stage.weights.items() if weight > 0}


def stages_as_json(stages: Sequence[StageConfig]) -> list[dict[str, Any]]:
    """What of `stages` the order depends on. The last one never ends, whatever until_step says: a longer run is the same run."""
    used = used_sources(stages)
    return [
        {
            "until_step": None if stage is stages[-1] else stage.until_step,
            "weights": {name: float(stage.weights.get(name, 0)) for name in sorted(used)},
        }
        for stage in stages
    ]


def repeats(order: SampleOrder, total_steps: int) -> dict[str, float]:
    """How often a run of `total_steps` sees each source: 0.5 is half of it, 2 is every window twice."""
    counts = order.counts(total_steps * order.global_batch_size)
    return {
        windows.source.name: float(count / max(1, windows.count))
        for windows, count in zip(order.windows, counts, strict=True)
    }


def _identity(source: TokenSource) -> dict[str, Any]:
    """A source by its content's outline, not by where it lies: the same files in another folder are the same source."""
    listing = json.dumps([[file.path.name, file.tokens] for file in source.files], separators=(",", ":"))
    digest = hashlib.blake2b(listing.encode(), digest_size=16).hexdigest()
    return {"files": len(source.files), "tokens": source.tokens, "token_size": source.token_size, "digest": digest}
