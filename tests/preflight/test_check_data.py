"""What the step says of data that is missing, damaged, too short, slow or hung."""

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import harness.data.order as order_module
from harness.config.schema import SourceConfig
from harness.data.check import BLOCK_BYTES, SAMPLED_BLOCKS
from harness.data.order import SampleOrder
from harness.data.reader import Reader
from harness.data.token_files import open_source
from harness.preflight import check_data as module
from harness.preflight.check_data import check_data
from harness.preflight.finding import Status
from tests.preflight.subjects import subject
from tests.tiny import END, VOCAB, write_tokens


def test_the_last_of_many_steps_is_reached_without_memory(tmp_path: Path) -> None:
    found = check_data(subject(tmp_path, steps=2_000_000_000))
    assert not found.failures and "step 2,000,000,000 reached" in found.summary
    assert found.facts["memory_growth_bytes"] < 50e6
    assert found.facts["reads"] == 8 and found.facts["slowest_read_seconds"] > 0


def test_missing_files_of_all_kinds_are_named(tmp_path: Path) -> None:
    made = subject(tmp_path)
    made.config.data.sources["web"].path = "/nowhere"
    made.config.data.validation = {"held": SourceConfig(path="/nor/here")}
    made.config.model.init_from = "/nor/there"
    found = check_data(made)
    assert found.status is Status.failed and "3 problems" in found.summary
    for text in ("data.sources.web.path=/nowhere", "data.validation.held.path=/nor/here", "model.init_from=/nor/there"):
        assert any(text in failure for failure in found.failures)


def test_a_source_that_is_read_again_and_again_is_a_warning(tmp_path: Path) -> None:
    made = subject(tmp_path, steps=100)
    windows = (open_source("web", made.config.data.sources["web"].path).tokens - 1) // 64
    found = check_data(made)
    (warning,) = found.warnings
    assert f"holds {windows:,} sequences and the run takes 800" in warning
    assert found.facts["repeats"]["web"] == pytest.approx(800 / windows)
    assert found.status is Status.warning and not check_data(subject(tmp_path / "short", steps=8)).warnings


def test_a_token_outside_the_vocabulary_at_the_last_step_is_found(tmp_path: Path) -> None:
    """The launcher's checks look at a few blocks; here it lies between them."""
    tokens = write_tokens(tmp_path / "tokens", documents=60_000)
    made = subject(tmp_path, data=tokens, steps=500)
    data = made.config.data
    order = SampleOrder([open_source("web", tokens)], data.stages, seed=data.seed, seq_len=64, global_batch_size=8)
    _, windows = order.samples(np.arange(499 * 8, 500 * 8))
    size = (tokens / "000.ds").stat().st_size
    starts = [int((size - BLOCK_BYTES) * turn / (SAMPLED_BLOCKS - 1)) for turn in range(SAMPLED_BLOCKS)]
    between = [int(w) * 128 for w in windows if all(not s - 256 < int(w) * 128 < s + BLOCK_BYTES + 256 for s in starts)]
    with open(tokens / "000.ds", "rb+") as file:
        file.seek(between[0] + 20)
        file.write((VOCAB + 7).to_bytes(2, "little"))
    found = check_data(made)
    assert "the last step can't be reached" in found.summary
    assert f"token {VOCAB + 7} at byte {between[0] + 20}" in found.failures[0]


def test_a_read_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*_: object) -> None:
        time.sleep(0.5)
        raise OSError("the mount came back when nobody waited any longer")

    monkeypatch.setattr(Reader, "read", hang)
    monkeypatch.setattr(module, "MOST_SECONDS", 0.1)
    found = check_data(subject(tmp_path))
    assert found.failures == (
        "no batch within 0 s: the storage of data.sources hangs; look at its mount on this machine",
    )
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("data-reader")]


def test_an_order_that_grows_with_the_steps_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Index(SampleOrder):
        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.index = np.ones(100_000_000, dtype=np.uint8)

    monkeypatch.setattr(order_module, "SampleOrder", Index)
    monkeypatch.setattr(module, "MOST_GROWTH", 50_000_000)
    (failure,) = check_data(subject(tmp_path)).failures
    assert "every rank would pay it" in failure


def test_slow_reads_are_a_warning(tmp_path: Path) -> None:
    (warning,) = check_data(subject(tmp_path, data__slow_read_seconds=0.0, data__eos_token_id=END)).warnings
    assert warning.startswith("8 of 8 reads took longer than data.slow_read_seconds=0")
