"""Text, token files made by datatrove through `prepare`, and small ones written by hand."""

import random
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import harness.data.read_pool as pool_module
from harness.config.schema import DataConfig, SourceConfig, StageConfig
from harness.data.order import SampleOrder
from harness.data.preparation.prepare import Request, prepare
from harness.data.token_files import TokenSource, open_source

SYLLABLES = [first + vowel for first in "bdfgklmnprstvz" for vowel in "aeiou"]


@pytest.fixture(autouse=True)
def no_objects_left() -> Iterator[None]:
    """fsspec's store in memory is one for the whole process: what a test puts there must not meet the next one."""
    yield
    if module := sys.modules.get("fsspec.implementations.memory"):
        module.MemoryFileSystem.store.clear()
        module.MemoryFileSystem.pseudo_dirs[:] = [""]


def write_texts(folder: Path, files: int = 12, words: int = 800, seed: int = 0) -> Path:
    """Text files of made-up prose."""
    folder.mkdir(parents=True)
    source = random.Random(seed)
    for number in range(files):
        text = " ".join("".join(source.choices(SYLLABLES, k=source.randint(1, 4))) for _ in range(words))
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def write_token_file(
    folder: Path,
    documents: list[list[int]],
    name: str = "00000_00000_shuffled.ds",
    width: int = 2,
    tokenizer: str | None = "some/tokenizer",
    index: bool = True,
) -> Path:
    """One file in datatrove's format, byte by byte; `tokenizer` None: no metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = [token for document in documents for token in document]
    path = folder / name
    path.write_bytes(np.array(tokens, dtype=f"<u{width}").tobytes())
    if index:
        ends = np.cumsum([len(document) for document in documents])
        path.with_name(f"{name}.index").write_bytes(ends.astype("<u8").tobytes())
    if tokenizer is not None:
        path.with_name(f"{name}.metadata").write_text(f"{tokenizer}|{width}\n{len(tokens)}\n{len(tokens)} T")
    return path


def data_config(paths: dict[str, Path], **settings: object) -> DataConfig:
    """A DataConfig with one stage that weights all sources alike."""
    return DataConfig(
        sources={name: SourceConfig(path=str(path)) for name, path in paths.items()},
        stages=[StageConfig(weights={name: 1 / len(paths) for name in paths})],
        **settings,  # type: ignore[arg-type]
    )


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token files that `prepare` made of text, with a tokenizer trained on it."""
    root = tmp_path_factory.mktemp("prepared")
    prepare(Request(str(write_texts(root / "text")), root / "tokens", vocab_size=500))
    return root / "tokens"


@pytest.fixture(scope="session")
def two_sources(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> list[TokenSource]:
    """The prepared source, and a second one made with its tokenizer."""
    root = tmp_path_factory.mktemp("second")
    texts = write_texts(root / "text", files=5, seed=1)
    prepare(Request(str(texts), root / "tokens", tokenizer=str(prepared / "tokenizer")))
    return [open_source("first", prepared), open_source("second", root / "tokens")]


@pytest.fixture
def order(two_sources: list[TokenSource]) -> SampleOrder:
    """Two stages over the two sources, eight samples of 32 tokens a step."""
    stages = [
        StageConfig("one", 10, {"first": 0.75, "second": 0.25}),
        StageConfig("two", None, {"first": 0.5, "second": 0.5}),
    ]
    return SampleOrder(two_sources, stages, seed=5, seq_len=32, global_batch_size=8)


@pytest.fixture
def no_thread_left() -> Iterator[None]:
    yield
    left = [thread.name for thread in threading.enumerate() if thread.name.startswith("data-reader")]
    assert not left


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "BACKOFF_SECONDS", (0.001,))
    monkeypatch.setattr(pool_module, "TICK_SECONDS", 0.005)
    monkeypatch.setattr(pool_module, "LATE_SECONDS", 0.005)
