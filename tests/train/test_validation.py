import math
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness.train.validation as validation_module
from harness.config.schema import RootConfig, SourceConfig
from harness.data.errors import DataError
from harness.data.held_out import HeldOutOrder
from harness.data.loader import MicroBatch, position_ids
from harness.data.windows import Windows, open_sources
from harness.train.validation import NO_TARGET, EarlyStop, Validation
from tests.data.conftest import write_token_file
from tests.tiny import END, VOCAB

SEQ_LEN = 16


@pytest.fixture
def config(tmp_path: Path) -> RootConfig:
    """Held-out sources of 60 and 20 sequences, 21 of them to be used. Rows of a file differ from each other."""
    for name, windows, seed in (("big", 60, 1), ("small", 20, 2)):
        draw = np.random.default_rng(seed)
        documents = [[*draw.integers(1, VOCAB, SEQ_LEN - 1).tolist(), END] for _ in range(windows)]
        write_token_file(tmp_path / name, [*documents, [END]], tokenizer=None)
    config = RootConfig()
    config.data.seq_len, config.model.vocab_size = SEQ_LEN, VOCAB
    config.data.sources = {"web": SourceConfig(path=str(tmp_path / "web"))}
    config.data.validation = {name: SourceConfig(path=str(tmp_path / name)) for name in ("big", "small")}
    config.train.eval_sequences, config.train.micro_batch_size = 21, 2
    return config


def rows(lists: list[list[MicroBatch]]) -> list[tuple[list[int], list[int]]]:
    """(input ids, labels) of what counts, over all micro batches."""
    found = []
    for micro in (micro for micros in lists for micro in micros):
        assert (micro.position_ids == position_ids(micro.input_ids, END)).all()
        counts = micro.labels != NO_TARGET
        assert (counts.all(axis=1) | ~counts.any(axis=1)).all(), "a sequence counts as a whole or not at all"
        found += [
            (ids.tolist(), labels.tolist())
            for ids, labels in zip(micro.input_ids, micro.labels, strict=True)
            if labels[0] != NO_TARGET
        ]
    return found


@pytest.mark.parametrize(("dp_size", "micro_batches"), [(1, 1), (1, 3), (2, 1), (2, 2), (4, 1), (16, 1)])
def test_the_same_sequences_for_any_layout(config: RootConfig, dp_size: int, micro_batches: int) -> None:
    reference = rows(list(Validation(config, END).batches(0, 1)))
    assert len(reference) == 21 == len({tuple(ids) for ids, _ in reference}), "each sequence once"
    validation = Validation(config, END, micro_batches=micro_batches)
    ranks = [list(validation.batches(rank, dp_size)) for rank in range(dp_size)]
    shapes = {tuple(micro.labels.shape for micro in micros) for lists in ranks for micros in lists}
    assert shapes == {((2, SEQ_LEN),) * micro_batches} and len({len(lists) for lists in ranks}) == 1
    assert sorted(row for lists in ranks for row in rows(lists)) == sorted(reference)
    assert validation.tokens == 21 * SEQ_LEN


def test_later_validations_see_the_same_and_leave_no_threads(
    config: RootConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    validation = Validation(config, END)
    first = rows(list(validation.batches(0, 2)))
    for path in (source.path for source in config.data.validation.values()):
        Path(path).rename(f"{path}.away")
    assert rows(list(validation.batches(0, 2))) == first  # kept
    for path in (source.path for source in config.data.validation.values()):
        Path(f"{path}.away").rename(path)
    monkeypatch.setattr(validation_module, "KEEP_BYTES", 0)
    large = Validation(config, END)
    assert [rows(list(large.batches(0, 2))) for _ in range(2)] == [first, first]
    next(abandoned := large.batches(0, 2))
    abandoned.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("data-reader")]


def test_sequences_come_from_every_source_by_its_size(config: RootConfig) -> None:
    sources = open_sources([(n, s.path) for n, s in config.data.validation.items()], SEQ_LEN, "validation")
    settings = {"seed": 3, "seq_len": SEQ_LEN, "global_batch_size": 4}
    numbers, windows = HeldOutOrder(sources, count=80, **settings).samples(np.arange(80))
    pairs = list(zip(numbers.tolist(), windows.tolist(), strict=True))
    counts = [Windows(source, SEQ_LEN).count for source in sources]
    assert sorted(pairs) == [(number, window) for number, count in enumerate(counts) for window in range(count)]
    share = Counter(numbers[:40].tolist())[0] / 40
    assert 0.6 < share < 0.9  # 0.75 in all
    fewer = HeldOutOrder(sources, count=10, **settings).samples(np.arange(12))
    assert list(zip(*(part.tolist() for part in fewer), strict=True)) == pairs[:10] + pairs[:2]
    other_seed = HeldOutOrder(sources, count=80, **{**settings, "seed": 4}).samples(np.arange(80))
    assert other_seed[1].tolist() != windows.tolist()


def test_bad_input_is_refused_with_its_keys(config: RootConfig, tmp_path: Path) -> None:
    config.train.eval_sequences = 81
    with pytest.raises(DataError) as error:
        Validation(config, END)
    assert str(error.value) == (
        "train.eval_sequences=81: data.validation holds 80 sequences of data.seq_len=16 (big 60, small 20). "
        "Set train.eval_sequences=80 or less, or hold out more text."
    )
    config.train.eval_sequences = 80
    assert len(rows(list(Validation(config, END).batches(0, 1)))) == 80
    config.data.validation["gone"] = SourceConfig(path=str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"data\.validation\.gone\.path=.*/gone does not exist"):
        Validation(config, END)
    config.data.sources["web"].path = str(tmp_path / "x" / ".." / "big")
    with pytest.raises(DataError) as error:
        Validation(config, END)
    assert str(error.value).startswith(f"data.validation.big.path={tmp_path}/big: the run trains on these files")
    assert "data.sources.web.path=" in str(error.value)


def test_early_stop_counts_validations_without_a_new_low() -> None:
    stop = EarlyStop(2)
    assert [stop.seen(loss) for loss in (3.0, 2.0, 2.5, 1.5, 1.5, math.nan)] == [False] * 5 + [True]
    assert stop.why.startswith("the validation loss has had no new low in 2 validations; the lowest was 1.5000 ")
    never = EarlyStop(0)
    assert not any(never.seen(9.0) for _ in range(20))


@given(st.lists(st.one_of(st.floats(0, 9), st.none()), max_size=12), st.integers(0, 4), st.integers(0, 12))
def test_early_stop_goes_on_after_a_restart(losses: list[float | None], patience: int, cut: int) -> None:
    whole, before = EarlyStop(patience, losses), EarlyStop(patience, losses[:cut])
    assert before.stops == (0 < patience <= before.bad_count)
    restarted = EarlyStop(patience, losses[:cut])
    for loss in losses[cut:]:
        restarted.seen(loss)
    assert (restarted.best, restarted.bad_count, restarted.stops) == (whole.best, whole.bad_count, whole.stops)
    finite = [loss for loss in losses if loss is not None]
    assert whole.best == min(finite, default=math.inf)
    if finite:
        assert whole.bad_count == len(losses) - 1 - losses.index(min(finite))
