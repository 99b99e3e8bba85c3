"""Whatever kills a run, and however it goes on, it sees the samples of the undisturbed run, in the same order.

1,000 random runs: several sources, stages, epochs of a few steps, both shuffles and packings, batches left out and mixtures
changed after the fact; killed at random moments and resumed from the newest checkpoint that agrees with the config, at
other numbers of ranks and other micro batches. A fifth of them read real files with the real loader.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import harness.data.mixture as mixture
from harness.config.schema import DataConfig, MixtureChange, Packing, Shuffle, SourceConfig, StageConfig
from harness.data.lineage import Lineage
from harness.data.loader import NO_TARGET, Loader, StepBatch
from harness.data.order import SampleOrder, stages_as_json
from harness.data.packing import cut
from harness.data.read_settings import ReadSettings, batch_bytes
from harness.data.shuffle import shuffle_of
from harness.data.skips import Skips
from harness.data.windows import Windows, open_sources
from tests.data.conftest import data_config, write_token_file

ORDER_CASES, LOADER_CASES, EPOCH_CASES = 800, 200, 250
SEQ_LEN = 8
END = 0
NAMES = ("web", "code", "math")
STEPS = 16


@dataclass(frozen=True)
class Config:
    """What a user may have typed for one launch."""

    data: DataConfig
    batch: int
    skip: tuple[tuple[int, int], ...] = ()

    def lineage(self) -> Lineage:
        changes = [{"step": c.step, "stages": stages_as_json(c.stages)} for c in self.data.change_at]
        return Lineage(Skips(self.skip), changes)

    def order(self) -> SampleOrder:
        """What `open_order` makes of it, but that files are looked at once for all runs."""
        windows = cut_sources(self.data.sources["web"].path, self.data.packing)
        return SampleOrder(
            [cut.source for cut in windows],
            self.data.stages,
            seed=self.data.seed,
            seq_len=SEQ_LEN,
            global_batch_size=self.batch,
            changes=self.data.change_at,
            blocks=shuffle_of(self.data),
            windows=windows,
        )


@cache
def cut_sources(web: str, packing: Packing) -> tuple[Windows, ...]:
    paths = {name: Path(web).with_name(name) for name in NAMES}
    data = data_config(paths, seq_len=SEQ_LEN, packing=packing)
    return tuple(cut(source, data) for source in open_sources(paths.items(), SEQ_LEN, packing=packing))


@cache
def file_tokens(path: Path) -> list[int]:
    return np.fromfile(path, "<u2").tolist()


Checkpoints = dict[int, tuple[object, object]]
"""Step -> the history that its manifest records."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sources of a few hundred tokens: documents shorter and longer than a sample, several files."""
    root = tmp_path_factory.mktemp("sources")
    draw = random.Random(0)
    for name, files, documents in (("web", 3, 30), ("code", 2, 12), ("math", 1, 6)):
        for number in range(files):
            texts = [[draw.randint(1, 999) for _ in range(draw.randint(1, 25))] + [END] for _ in range(documents)]
            write_token_file(root / name, texts, f"{number:03d}.ds")
    return root


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of the mixture as short as these runs, so that they begin, end and are cut short all the time."""
    for name in ("BLOCK", "LONGEST_BLOCK", "ROUNDED_BLOCK"):
        monkeypatch.setattr(mixture, name, 64)


def draw_stages(draw: random.Random, begin: int) -> list[StageConfig]:
    """Up to three stages that begin with step `begin`."""
    ends = sorted(draw.sample(range(begin, begin + STEPS), draw.randint(0, 2)))
    return [
        StageConfig(
            str(end), end, {name: draw.choice([0.1, 0.5, 1.0]) for name in draw.sample(NAMES, draw.randint(1, 3))}
        )
        for end in [*ends, None]
    ]


def draw_config(draw: random.Random, folder: Path) -> Config:
    data = DataConfig(
        seq_len=SEQ_LEN,
        seed=draw.randint(0, 5),
        sources={name: SourceConfig(path=str(folder / name)) for name in NAMES},
        stages=draw_stages(draw, 1),
        shuffle=draw.choice(list(Shuffle)),
        shuffle_block=draw.choice([1, 3, 8]),
        shuffle_group=draw.choice([1, 2, 5]),
        packing=draw.choice(list(Packing)),
        eos_token_id=END,
    )
    return Config(data, batch=draw.choice([4, 8, 12]))


def changed(draw: random.Random, config: Config) -> Config:
    """What a user makes of the config before the next launch: nothing, mostly."""
    what = draw.randint(0, 5)
    if what == 0:
        first = draw.randint(1, STEPS)
        return replace(config, skip=(*config.skip, (first, first + draw.randint(0, 4))))
    begun = [change.step for change in config.data.change_at]
    if what == 1 and len(begun) < 3:
        step = max([*begun, 1]) + draw.randint(1, STEPS // 2)
        return _with_changes(config, [*config.data.change_at, MixtureChange(step, draw_stages(draw, step))])
    if what == 2 and draw.random() < 0.3:
        return _with_changes(replace(config, skip=()), config.data.change_at[:-1])  # taken back
    return config


def _with_changes(config: Config, changes: list[MixtureChange]) -> Config:
    return replace(config, data=replace(config.data, change_at=changes))


def draw_layout(draw: random.Random, batch: int) -> tuple[int, int]:
    """(data-parallel ranks, micro batch) that the batch can be divided into."""
    dp = draw.choice([n for n in (1, 2, 3, 4) if batch % n == 0])
    return dp, draw.choice([n for n in (1, 2, 3, 4) if batch // dp % n == 0])


Steps = Iterator[tuple[int, list[tuple[int, int]]]]
"""(step, (source, window) of each sample of the global batch in its order)."""


def by_order(config: Config, start: int, draw: random.Random) -> Steps:
    """The steps after `start` as ranks would ask the order for them, each for its own part."""
    order, skips = config.order(), Skips(config.skip)
    dp, micro = draw_layout(draw, config.batch)
    batches = np.array([skips.batch_of_step(step) for step in range(start + 1, STEPS + 1)], dtype=np.int64)
    rows = (batches[:, None] - 1) * config.batch + np.arange(config.batch)
    by_rank = rows.reshape(len(batches), config.batch // (dp * micro), dp, micro)
    found: dict[int, tuple[int, int]] = {}
    for rank in range(dp):
        own = by_rank[:, :, rank].reshape(-1)
        found |= zip(own.tolist(), pairs(order, own), strict=True)
    for step, indices in enumerate(rows.tolist(), start + 1):
        yield step, [found[index] for index in indices]


def pairs(order: SampleOrder, indices: np.ndarray) -> list[tuple[int, int]]:
    sources, windows = order.samples(indices)
    return list(zip(sources.tolist(), windows.tolist(), strict=True))


def by_loader(config: Config, start: int, draw: random.Random) -> Steps:
    """The same, read from the files by one loader for each rank."""
    order = config.order()
    dp, micro = draw_layout(draw, config.batch)
    loaders = [
        Loader(
            order.sources,
            order,
            global_batch_size=config.batch,
            micro_batch_size=micro,
            dp_rank=rank,
            dp_size=dp,
            start_step=start,
            stop_step=STEPS,
            seq_len=SEQ_LEN,
            eos_token_id=END,
            document_mask=True,
            skips=Skips(config.skip),
            reading=ReadSettings(
                ahead_bytes=draw.randint(2, 4) * batch_bytes(config.batch // dp, SEQ_LEN),
                threads=draw.randint(1, 2),
            ),
        )
        for rank in range(dp)
    ]
    try:
        for batches in zip(*loaders, strict=True):
            yield batches[0].step, global_batch(order, list(batches))
    finally:
        for loader in loaders:  # whatever they have read ahead is lost, as by a kill
            loader.close()


def global_batch(order: SampleOrder, batches: list[StepBatch]) -> list[tuple[int, int]]:
    """The samples of all ranks in the run's order, once their tokens are seen to be right."""
    found: dict[int, tuple[int, int]] = {}
    for batch in batches:
        rows = [row for micro in batch.micro_batches for row in zip(micro.input_ids, micro.labels, strict=True)]
        for index, source, window, (inputs, labels) in zip(
            batch.samples.tolist(), batch.sources.tolist(), batch.windows.tolist(), rows, strict=True
        ):
            tokens = window_tokens(order, source, window)
            kept = labels[labels != NO_TARGET]
            assert tokens[1:] == kept.tolist() and tokens[:-1] == inputs[: len(kept)].tolist()
            found[index] = (source, window)
    return [found[index] for index in sorted(found)]


def window_tokens(order: SampleOrder, source: int, window: int) -> list[int]:
    """Straight from the files."""
    windows = order.windows[source]
    tokens: list[int] = []
    for piece in windows.pieces(window):
        begin = piece.offset // 2
        tokens += file_tokens(windows.source.files[piece.file].path)[begin : begin + piece.tokens]
    return tokens


def disturbed(draw: random.Random, folder: Path, steps_of: object) -> tuple[Config, dict[int, list[tuple[int, int]]]]:
    """A run that is killed and resumed until it has done all steps: its last config, and what each step trained on."""
    config = draw_config(draw, folder)
    checkpoints: Checkpoints = {}
    trained: dict[int, list[tuple[int, int]]] = {}
    every = draw.randint(1, 7)
    for _ in range(draw.randint(1, 4)):
        config = changed(draw, config)
        lineage = config.lineage()
        agreeing = [step for step, history in checkpoints.items() if lineage.agrees(step, *history)]  # type: ignore[arg-type]
        start = max(agreeing, default=0)
        checkpoints = {step: history for step, history in checkpoints.items() if step <= start}
        trained = {step: batch for step, batch in trained.items() if step <= start}
        killed_after = draw.randint(start, STEPS)
        for step, batch in steps_of(config, start, draw):  # type: ignore[operator]
            if step > killed_after:
                break  # in the middle of a step, that is
            trained[step] = batch
            if step % every == 0:
                checkpoints[step] = lineage.history(step)
    return config, trained


@pytest.mark.filterwarnings("ignore:data.")
@pytest.mark.parametrize(("cases", "steps_of"), [(ORDER_CASES, by_order), (LOADER_CASES, by_loader)])
def test_equals_the_undisturbed_run(cases: int, steps_of: object, folder: Path) -> None:
    done = 0
    for case in range(cases):
        draw = random.Random(case)
        config, trained = disturbed(draw, folder, steps_of)
        order, skips = config.order(), Skips(config.skip)
        assert sorted(trained) == list(range(1, len(trained) + 1))
        batches = np.array([skips.batch_of_step(step) for step in trained], dtype=np.int64)
        expected = pairs(order, ((batches[:, None] - 1) * config.batch + np.arange(config.batch)).reshape(-1))
        assert [pair for batch in trained.values() for pair in batch] == expected, f"case {case}"
        done += len(trained)
    assert done > 6 * cases, "most runs must have got somewhere"


@pytest.mark.filterwarnings("ignore:data.")
def test_every_window_once_per_epoch(folder: Path) -> None:
    """Whatever cuts the stages short."""
    for case in range(EPOCH_CASES):
        draw = random.Random(case)
        config = draw_config(draw, folder)
        for _ in range(4):
            config = changed(draw, config)
        step = max([0, *(change.step for change in config.data.change_at)]) + 3 * STEPS
        last = MixtureChange(step, [StageConfig("end", None, dict.fromkeys(NAMES, 1.0))])
        order = _with_changes(config, [*config.data.change_at, last]).order()
        # at the end of the last stage's first blocks nothing is left over
        sources, windows = order.samples(np.arange((step - 1) * config.batch + 512))
        for number, source in enumerate(order.windows):
            taken = np.bincount(windows[sources == number], minlength=source.count)
            assert len(taken) == source.count and taken.sum() > source.count
            assert taken.max() - taken.min() <= 1, f"case {case}, source {number}"
