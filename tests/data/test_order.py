from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.config.schema import StageConfig
from harness.data.errors import DataError
from harness.data.mixture import MIN_BLOCK
from harness.data.order import SampleOrder, repeats
from harness.data.permutation import derive_key, permute
from harness.data.token_files import TokenFile, TokenSource

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


@given(windows=st.integers(1, 3 * MIN_BLOCK), blocks=st.integers(1, 4), seed=st.integers(0, 2**32))
@settings(max_examples=50)
def test_every_window_once_per_epoch(windows: int, blocks: int, seed: int) -> None:
    order = build({"web": windows}, [StageConfig(weights={"web": 1})], seed=seed)
    samples = blocks * MIN_BLOCK
    counts = np.bincount(order.samples(np.arange(samples))[1], minlength=windows)
    # Whole epochs give each window the same count; the epoch that has begun adds at most one.
    assert len(counts) == windows
    assert counts.min() == samples // windows and counts.max() == -(-samples // windows)


@pytest.mark.filterwarnings("ignore:data.stages")
@given(weights=mixtures, blocks=st.integers(1, 6))
@settings(max_examples=50)
def test_shares_are_exact_at_block_boundaries(weights: list[float], blocks: int) -> None:
    names = [f"s{number}" for number in range(len(weights))]
    order = build(dict.fromkeys(names, 1000), [StageConfig(weights=dict(zip(names, weights, strict=True)))])
    samples = blocks * max(MIN_BLOCK, 2 ** int(np.ceil(np.log2(2 * sum(weights) / min(weights)))))
    drawn = np.bincount(order.samples(np.arange(samples))[0], minlength=len(weights))
    expected = np.array(weights) / sum(weights) * samples
    assert np.abs(drawn - expected).max() <= 1
    assert drawn.tolist() == order.counts(samples).tolist()


@given(start=st.integers(0, 10**9))
@settings(max_examples=30)
def test_shares_are_close_in_any_5000_samples(start: int) -> None:
    order = build(
        {"web": 90_000, "code": 900, "math": 10}, [StageConfig(weights={"web": 0.85, "code": 0.12, "math": 0.03})]
    )
    drawn = np.bincount(order.samples(np.arange(start, start + 5000))[0], minlength=3) / 5000
    assert np.abs(drawn - [0.85, 0.12, 0.03]).max() < 0.025  # five standard deviations of a random draw


def test_sources_are_shuffled_not_cycled() -> None:
    order = build({"web": 1000, "code": 1000}, [StageConfig(weights={"web": 0.5, "code": 0.5})])
    drawn = order.samples(np.arange(4096))[0]
    repeated = (drawn[1:] == drawn[:-1]).mean()
    assert 0.45 < repeated < 0.55


@given(step=st.integers(0, 3000), per_step=st.sampled_from([1, 2, 8]))
@settings(max_examples=50)
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
@settings(max_examples=40)
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
        # They are the first ones of the source's own shuffle: none was left out either.
        expected = permute(np.arange(len(mine)), 10**6, derive_key(1, "windows", ("web", "code")[number], 0))
        assert set(mine.tolist()) == set(expected.tolist())


def test_stages_switch_at_their_step() -> None:
    stages = [StageConfig("a", 100, {"web": 1}), StageConfig("b", 150, {"code": 1}), StageConfig("c", None, {"web": 1})]
    order = build({"web": 999, "code": 999}, stages, global_batch_size=8)
    drawn = order.samples(np.arange(200 * 8))[0].reshape(200, 8)
    assert (drawn[:100] == 0).all() and (drawn[100:150] == 1).all() and (drawn[150:] == 0).all()


def test_epochs_are_shuffled_anew() -> None:
    order = build({"web": MIN_BLOCK}, [StageConfig(weights={"web": 1})])
    first, second = order.samples(np.arange(2 * MIN_BLOCK))[1].reshape(2, -1)
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(MIN_BLOCK))
    assert (first == second).mean() < 0.01


def test_seeks_anywhere_without_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sample 4.72M x 576 costs the same work as sample 0: count the elements that go through the permutation."""
    import harness.data.mixture as module

    seen: list[int] = []
    permute = module.permute

    def counted(index: np.ndarray, *rest: object) -> np.ndarray:
        seen.append(len(index))
        return permute(index, *rest)

    monkeypatch.setattr(module, "permute", counted)
    stages = [
        StageConfig("a", 3_450_000, {"web": 0.85, "code": 0.12, "math": 0.03}),
        StageConfig("b", 4_198_000, {"web": 0.75, "code": 0.15, "math": 0.10}),
        StageConfig("c", None, {"web": 0.63, "code": 0.24, "math": 0.13}),
    ]
    order = build({"web": 2 * 10**9, "code": 3 * 10**8, "math": 10**8}, stages, global_batch_size=576)
    for step in (0, 4_719_999):
        order.samples(np.arange(step * 576, step * 576 + 3))
    assert all(size <= 3 for size in seen)
    assert len(seen) <= 8


def test_never_changes() -> None:
    """A checkpoint resumed by a later version must see the same order."""
    order = build({"web": 100, "code": 50}, [StageConfig(weights={"web": 0.7, "code": 0.3})], seed=6)
    assert [order.sample(i) for i in (0, 1, 2, 5000)] == PINNED


PINNED = [(0, 19), (1, 13), (0, 11), (0, 33)]


def test_weights_are_normalised_with_a_warning() -> None:
    with pytest.warns(UserWarning, match=r"data\.stages\[0\] \(long\)\.weights sum to 1\.00565"):
        scaled = build({"web": 500, "code": 500}, [StageConfig("long", None, {"web": 0.5, "code": 0.50565})])
    assert len(scaled.warnings) == 1
    drawn = np.bincount(scaled.samples(np.arange(MIN_BLOCK))[0])
    assert abs(drawn[0] - MIN_BLOCK * 0.5 / 1.00565) <= 1


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
