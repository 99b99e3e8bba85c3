import tracemalloc
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import MixtureChange, StageConfig
from harness.data.errors import DataError
from harness.data.mixture import BLOCK
from harness.data.order import SampleOrder, repeats
from harness.data.permutation import derive_key, permute
from harness.data.shares import Draws
from harness.data.shuffle import Blocks
from harness.data.token_files import TokenFile, TokenSource
from tests.config.configs import config

SEQ_LEN = 16


def source(name: str, windows: int, files: int = 1) -> TokenSource:
    """A source that exists on paper only, with `windows` samples in each of its files."""
    listing = tuple(TokenFile(Path(f"{name}-{i}.ds"), windows * SEQ_LEN + 1) for i in range(files))
    return TokenSource(name, Path("/data") / name, listing, 2, None)


def build(
    windows: dict[str, int],
    stages: list[StageConfig],
    seed: int = 1,
    global_batch_size: int = 8,
    seq_len: int = SEQ_LEN,
) -> SampleOrder:
    sources = [source(name, count) for name, count in windows.items()]
    return SampleOrder(sources, stages, seed=seed, seq_len=seq_len, global_batch_size=global_batch_size)


mixtures = st.lists(st.floats(0.001, 1), min_size=1, max_size=6)


@pytest.mark.filterwarnings("ignore:data.stages")
@given(weights=mixtures, samples=st.integers(1, 30_000))
@settings(max_examples=40, deadline=None)
def test_counts_are_those_of_the_samples(weights: list[float], samples: int) -> None:
    names = [f"s{number}" for number in range(len(weights))]
    order = build(dict.fromkeys(names, 1000), [StageConfig(weights=dict(zip(names, weights, strict=True)))])
    drawn = np.bincount(order.samples(np.arange(samples))[0], minlength=len(weights))
    assert drawn.tolist() == order.counts(samples).tolist()
    assert np.abs(drawn - np.array(weights) / sum(weights) * samples).max() < 1.1


@given(start=st.integers(0, 10**12), length=st.integers(100, 600))
@settings(max_examples=50, deadline=None)
def test_shares_are_within_one_sample_anywhere(start: int, length: int) -> None:
    shares = {"web": 0.85, "code": 0.12, "math": 0.03}
    order = build({"web": 90_000, "code": 900, "math": 10}, [StageConfig(weights=shares)])
    drawn = np.bincount(order.samples(np.arange(start, start + length))[0], minlength=3)
    off = np.abs(drawn - length * np.array(list(shares.values()))).max()
    assert off <= 1 if length % 100 == 0 else off < 2  # both ends may be off by less than one
    assert np.abs(order.counts(start + length) - (start + length) * np.array(list(shares.values()))).max() < 1.01


def test_800_to_200_are_800_to_200() -> None:
    order = build({"web": 105, "code": 105}, [StageConfig(weights={"web": 0.8, "code": 0.2})])
    drawn = order.samples(np.arange(20_000))[0]
    for length in (100, 500, 1000):
        seen = np.convolve(drawn == 1, np.ones(length), "valid")  # in every stretch of this length
        assert np.abs(seen - 0.2 * length).max() <= 1 + 1e-6


@pytest.mark.parametrize("ranks", [2, 5, 8])
@pytest.mark.parametrize("share", [0.5, 0.8])
def test_sources_come_in_no_rhythm(ranks: int, share: float) -> None:
    """Else the same ranks would always read the same source, and be slow or fast with it."""
    order = build({"web": 1000, "code": 1000}, [StageConfig(weights={"web": share, "code": 1 - share})])
    drawn = order.samples(np.arange(20_000 * ranks))[0].reshape(-1, ranks)
    found = (drawn == 1).mean(axis=0)
    assert (found > 0.1 * (1 - share)).all(), found
    rhythm = [(drawn.reshape(-1)[lag:] == drawn.reshape(-1)[:-lag]).mean() for lag in range(1, 12)]
    assert max(rhythm) < 0.9, rhythm


@given(step=st.integers(0, 3000), per_step=st.sampled_from([1, 2, 8]))
@settings(max_examples=50, deadline=None)
def test_any_slice_equals_the_whole(step: int, per_step: int) -> None:
    """Seeking to a step gives what reading from the start would have given there."""
    stages = [StageConfig("a", 700, {"web": 0.9, "code": 0.1}), StageConfig("b", None, {"web": 0.2, "code": 0.8})]
    order = build({"web": 321, "code": 123}, stages, global_batch_size=per_step)
    begin = step * per_step
    sources, windows = order.samples(np.arange(begin + 2 * per_step))
    again = build({"web": 321, "code": 123}, stages, global_batch_size=per_step)
    tail = again.samples(np.arange(begin, begin + 2 * per_step))
    assert sources[begin:].tolist() == tail[0].tolist() and windows[begin:].tolist() == tail[1].tolist()
    assert again.sample(begin) == (sources[begin], windows[begin])


@given(
    ends=st.lists(st.integers(1, 3000), min_size=1, max_size=4, unique=True).map(sorted),
    shares=st.lists(st.floats(0.01, 0.99), min_size=5, max_size=5),
)
@settings(max_examples=40, deadline=None)
def test_a_source_goes_on_across_stages(ends: list[int], shares: list[float]) -> None:
    """No window is skipped or read twice within an epoch, whatever the stages do: each count number appears once."""
    stages = [
        StageConfig(f"s{i}", end, {"web": share, "code": 1 - share})
        for i, (end, share) in enumerate(zip([*ends, None], shares, strict=False))
    ]
    windows = {"web": 10**6, "code": 10**6}  # larger than the run: every window at most once
    order = build(windows, stages, global_batch_size=4)
    total = ends[-1] * 4  # the end of the last but one stage: all before it are complete
    sources, drawn = order.samples(np.arange(total))
    for number in (0, 1):
        mine = drawn[sources == number]
        assert len(np.unique(mine)) == len(mine) == order.counts(total)[number]
        # They are the first ones of the source's own shuffle, in its order: none was left out either.
        expected = permute(np.arange(len(mine)), 10**6, derive_key(1, "windows", ("web", "code")[number], 0))
        assert mine.tolist() == expected.tolist()


def test_stages_switch_at_their_step() -> None:
    stages = [StageConfig("a", 100, {"web": 1}), StageConfig("b", 150, {"code": 1}), StageConfig("c", None, {"web": 1})]
    order = build({"web": 999, "code": 999}, stages, global_batch_size=8)
    drawn = order.samples(np.arange(200 * 8))[0].reshape(200, 8)
    assert (drawn[:100] == 0).all() and (drawn[100:150] == 1).all() and (drawn[150:] == 0).all()


def test_epochs_are_shuffled_anew() -> None:
    order = build({"web": BLOCK}, [StageConfig(weights={"web": 1})])
    first, second = order.samples(np.arange(2 * BLOCK))[1].reshape(2, -1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(BLOCK))
    assert (first == second).mean() < 0.01


def test_seeks_anywhere_without_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample 4.72M x 576 costs the same work as sample 0: count the places that are laid out."""
    import harness.data.mixture as module

    seen: list[int] = []
    real = module.mixed

    def counted(draws: Draws, *rest: np.ndarray) -> np.ndarray:
        seen.append(len(draws.sources))
        return real(draws, *rest)

    monkeypatch.setattr(module, "mixed", counted)
    stages = [
        StageConfig("a", 3_450_000, {"web": 0.85, "code": 0.12, "math": 0.03}),
        StageConfig("b", 4_198_000, {"web": 0.75, "code": 0.15, "math": 0.10}),
        StageConfig("c", None, {"web": 0.63, "code": 0.24, "math": 0.13}),
    ]
    order = build({"web": 2 * 10**9, "code": 3 * 10**8, "math": 10**8}, stages, global_batch_size=576)
    seen.clear()
    for step in (0, 4_719_999, 10**12):
        order.samples(np.arange(step * 576, step * 576 + 3))
    assert len(seen) <= 6 and max(seen) <= BLOCK


def test_never_changes() -> None:
    """A checkpoint resumed by a later version must see the same order."""
    order = build({"web": 100, "code": 50}, [StageConfig(weights={"web": 0.7, "code": 0.3})], seed=6)
    assert [order.sample(i) for i in (0, 1, 2, 3, 4, 5000)] == PINNED


PINNED = [(0, 44), (1, 17), (0, 84), (1, 42), (0, 10), (0, 61)]


def test_weights_are_normalised_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"data\.stages\[0\] \(long\)\.weights sum to 1\.00565"):
        scaled = build({"web": 500, "code": 500}, [StageConfig("long", None, {"web": 0.5, "code": 0.50565})])
    assert len(scaled.warnings) == 1
    drawn = np.bincount(scaled.samples(np.arange(BLOCK))[0])
    assert abs(drawn[0] - BLOCK * 0.5 / 1.00565) <= 1


def test_decimal_weights_that_sum_to_one_do_not_warn() -> None:
    weights = {f"s{i}": 0.1 for i in range(10)}  # 0.1 * 10 is not 1 in binary
    assert build(dict.fromkeys(weights, 9), [StageConfig(weights=weights)]).warnings == []


def test_repeats() -> None:
    order = build({"web": 8000, "math": 100}, [StageConfig(weights={"web": 0.5, "math": 0.5})], global_batch_size=8)
    assert repeats(order, total_steps=1000) == {"web": 0.5, "math": 40.0}


def test_definition_depends_on_what_the_order_depends_on() -> None:
    def defined(**changes: object) -> dict[str, object]:
        settings = {"windows": {"web": 100, "code": 50}, "seed": 1, "global_batch_size": 8, "until": None, "share": 0.5}
        settings |= changes
        stages = [
            StageConfig("a", 10, {"web": settings["share"], "code": 0.5}),
            StageConfig("b", settings["until"], {"web": 1}),
        ]
        return build(
            settings["windows"], stages, seed=settings["seed"], global_batch_size=settings["global_batch_size"]
        ).definition()

    same = defined()
    assert defined() == same
    assert defined(until=500) == same  # a longer run is the same run
    with pytest.warns(UserWarning):
        other_share = defined(share=0.6)
    others = [
        defined(seed=2),
        defined(global_batch_size=16),
        defined(windows={"web": 101, "code": 50}),
        defined(windows={"code": 50, "web": 100}),
        defined(windows={"net": 1, "web": 100, "code": 50}),
        other_share,
    ]
    assert others.pop(4) == same  # a source without a weight changes nothing
    assert all(one != other for one, other in combinations([same, *others], 2))


def test_definition_does_not_depend_on_where_the_files_lie() -> None:
    here, there = source("web", 10), source("web", 10)
    there = TokenSource(
        "web", Path("/elsewhere"), tuple(TokenFile(Path("/x") / f.path.name, f.tokens) for f in there.files), 2, None
    )
    orders = [
        SampleOrder([s], [StageConfig(weights={"web": 1})], seed=1, seq_len=SEQ_LEN, global_batch_size=1)
        for s in (here, there)
    ]
    assert orders[0].definition() == orders[1].definition()


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "data.stages is empty"),
        ([StageConfig("a", None, {"nets": 1})], r"weights names nets: no such source; there are web, tiny"),
        ([StageConfig("a", None, {"web": -1})], "must be finite and not negative"),
        ([StageConfig("a", None, {"web": float("nan")})], "must be finite and not negative"),
        ([StageConfig("a", None, {"web": 0})], "sum to 0"),
        ([StageConfig("a", None, {"web": 1, "tiny": 1e-12})], "leave it out"),
        ([StageConfig("a", None, {"web": 1}), StageConfig("b", None, {"web": 1})], r"\(a\)\.until_step=None"),
        (
            [StageConfig("a", 9, {"web": 1}), StageConfig("b", 9, {"web": 1}), StageConfig("c", None, {"web": 1})],
            r"\(b\)\.until_step=9: must be a step after what comes before it, which ends with step 9",
        ),
        (
            [StageConfig("a", None, {"tiny": 1})],
            r"data\.sources\.tiny\.path=/data/tiny holds no sample of data\.seq_len=16",
        ),
    ],
)
def test_impossible_stages(stages: list[StageConfig], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build({"web": 10, "tiny": 0}, stages)


def test_samples_count_from_zero() -> None:
    order = build({"web": 10}, [StageConfig(weights={"web": 1})])
    with pytest.raises(IndexError, match="sample -1"):
        order.samples(np.array([3, -1]))


def smol3b() -> SampleOrder:
    """The order of the published run, with its real stages and steps, and files that exist on paper only."""
    data = config("smol3b").data
    windows = {"web": 2 * 10**9, "code": 3 * 10**8, "math": 10**8}
    return build(windows, data.stages, seed=data.seed, global_batch_size=576)


def test_memory_is_the_same_at_any_step_of_the_real_definition() -> None:
    order = smol3b()
    peaks = {}
    for step in (100, 2_000_000, 4_720_000, 4_720_000_000):
        order.samples(np.arange(576))  # imports and caches that any call fills
        tracemalloc.start()
        order.samples(np.arange((step - 1) * 576, step * 576))
        peaks[step] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert max(peaks.values()) < 500_000, peaks  # one block of 4,000 places, and a few keys
    assert max(peaks.values()) < 1.2 * min(peaks.values()), peaks
    tracemalloc.start()
    smol3b()
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_neighbours_meet_in_a_batch_by_chance_only() -> None:
    """How many windows of a batch follow each other in the source, and in how long runs, against draws without any order."""
    size, batches, windows = 512, 400, 20_000
    order = build({"web": windows}, [StageConfig(weights={"web": 1})], global_batch_size=size)
    drawn = order.samples(np.arange(size * batches))[1].reshape(batches, size)
    chance = np.random.default_rng(0)
    random = np.array([chance.choice(windows, size, replace=False) for _ in range(batches)])
    found, expected = (sum(map(run_lengths, rows), Counter()) for rows in (drawn, random))
    pairs, by_chance = (sum((length - 1) * count for length, count in runs.items()) for runs in (found, expected))
    mean = batches * size * (size - 1) / windows  # 5,233: two of `size` draws are next to each other
    assert abs(pairs - mean) < 5 * mean**0.5 and abs(by_chance - mean) < 5 * mean**0.5
    assert found[3] == pytest.approx(expected[3], abs=5 * expected[3] ** 0.5)
    assert max(found) <= 5


def run_lengths(windows: np.ndarray) -> Counter[int]:
    """How many runs of windows that follow each other there are, by length."""
    breaks = np.flatnonzero(np.diff(np.sort(windows)) != 1)
    return Counter(np.diff(np.concatenate([[-1], breaks, [len(windows) - 1]])).tolist())


def by_blocks(windows: int, block: int, group: int, per_step: int = 8, name: str = "web") -> SampleOrder:
    stages = [StageConfig(weights={name: 1})]
    return SampleOrder(
        [source(name, windows)],
        stages,
        seed=3,
        seq_len=SEQ_LEN,
        global_batch_size=per_step,
        blocks=Blocks(block, group),
    )


def test_neighbours_meet_in_a_batch_of_blocks_as_in_a_source_of_the_size_of_a_group() -> None:
    size, block, group = 256, 64, 64
    order = by_blocks(50 * block * group, block, group, per_step=size)
    batches = 40 * block * group // size
    drawn = order.samples(np.arange(size * batches))[1].reshape(batches, size)
    pairs = sum((length - 1) * count for rows in drawn for length, count in run_lengths(rows).items())
    bound = batches * size * (size - 1) / (block * group)  # the data.shuffle_group of the schema says so
    assert 0.9 * bound < pairs < bound + 5 * bound**0.5


def test_blocks_are_part_of_the_definition() -> None:
    plain = build({"web": 100}, [StageConfig(weights={"web": 1})], seed=3).definition()
    one, two = by_blocks(100, 4, 8).definition(), by_blocks(100, 4, 9).definition()
    assert "shuffle" not in plain and one["shuffle"] == {"block": 4, "group": 8} != two["shuffle"]
    assert {**one, "shuffle": None} == {**plain, "shuffle": None}
    with pytest.raises(DataError, match=r"data\.shuffle_group=0: must be at least 1"):
        by_blocks(100, 4, 0)


WINDOWS = {"web": 5000, "code": 700, "math": 30}
CHANGES = [
    MixtureChange(333, [StageConfig("x", 500, {"code": 1, "math": 0.1}), StageConfig("y", None, {"web": 0.2, "math": 1})]),
    MixtureChange(800, [StageConfig("z", None, {"web": 1, "code": 1, "math": 0.02})]),
]  # fmt: skip
BEFORE = [StageConfig("a", 250, {"web": 0.9, "code": 0.1}), StageConfig("b", 600, {"web": 1}), StageConfig("c", None, {"code": 1})]  # fmt: skip


def changed(changes: list[MixtureChange], seed: int = 1) -> SampleOrder:
    sources = [source(name, count) for name, count in WINDOWS.items()]
    return SampleOrder(sources, BEFORE, seed=seed, seq_len=SEQ_LEN, global_batch_size=8, changes=changes)


@pytest.mark.filterwarnings("ignore:data.")
def test_a_change_leaves_the_past_as_it_was_and_begins_at_its_step() -> None:
    orders = [changed(CHANGES[:count]) for count in range(3)]
    drawn = [np.stack(order.samples(np.arange(1200 * 8))) for order in orders]
    assert (drawn[0][:, : 332 * 8] == drawn[1][:, : 332 * 8]).all()
    assert (drawn[1][:, : 799 * 8] == drawn[2][:, : 799 * 8]).all()
    of_second = drawn[2][0].reshape(1200, 8)
    assert (of_second[250:332] == 0).all() and not (of_second[332:500] == 0).any() and (of_second[332:500] == 2).any()
    assert not (of_second[500:799] == 1).any()
    shares = np.bincount(of_second[799:].reshape(-1), minlength=3) / (401 * 8)
    assert np.abs(shares - np.array([1, 1, 0.02]) / 2.02).max() < 0.05
    assert orders[2].definition() == orders[0].definition()
    assert [change["step"] for change in orders[2].changes()] == [333, 800]
    assert orders[2].changes()[:1] == orders[1].changes()


@pytest.mark.filterwarnings("ignore:data.")
@given(
    steps=st.lists(st.integers(2, 1500), min_size=1, max_size=4, unique=True).map(sorted),
    seed=st.integers(0, 9),
    until=st.integers(1, 20_000),
)
@settings(max_examples=30, deadline=None)
def test_a_change_anywhere_loses_and_repeats_no_window(steps: list[int], seed: int, until: int) -> None:
    mixtures = [{"web": 1, "code": 0.3}, {"web": 0.5, "code": 1}, {"code": 0.2, "web": 0.1}, {"web": 1, "code": 1}]
    order = changed([MixtureChange(step, [StageConfig("m", None, mixtures[n])]) for n, step in enumerate(steps)], seed)
    sources, drawn = order.samples(np.arange(until))
    for number, windows in enumerate(WINDOWS.values()):
        mine = drawn[sources == number]
        for epoch in range(0, len(mine), windows):
            assert len(set(mine[epoch : epoch + windows].tolist())) == min(windows, len(mine) - epoch)
    assert order.counts(until).tolist() == np.bincount(sources, minlength=3).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([MixtureChange(1, [StageConfig(weights={"web": 1})])], r"data\.change_at\[0\]\.step=1: must be a step after 1"),
        ([*CHANGES, MixtureChange(800, CHANGES[1].stages)], r"data\.change_at\[2\]\.step=800: .* entry before it"),
        ([MixtureChange(5, [])], r"data\.change_at\[0\]\.stages is empty"),
        (
            [MixtureChange(5, [StageConfig("q", None, {"nets": 1})])],
            r"data\.change_at\[0\]\.stages\[0\] \(q\)\.weights names nets: no such source",
        ),
    ],
)  # fmt: skip
def test_impossible_changes(changes: list[MixtureChange], message: str) -> None:
    with pytest.raises(DataError, match=message):
        changed(changes)
