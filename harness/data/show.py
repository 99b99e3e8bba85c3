"""What a step of a run trains on: sources, files, documents and text. That is how a loss spike is understood.

The batch is computed from the run's config, with `train.skip` and `data.change_at`; nothing of the run's past is needed.
Of sources in an object store, what is shown is read there: no copy is needed.
"""

import dataclasses
import json
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from harness.config.layout import layout
from harness.config.schema import DataConfig, RootConfig
from harness.data.check import find_tokenizer
from harness.data.errors import DataError
from harness.data.order import SampleOrder, open_order
from harness.data.origins import Folder, join
from harness.data.skips import Skips
from harness.data.token_files import DTYPES, TokenSource, index_path
from harness.data.windows import Piece, Windows

TEXT_CHARACTERS = 300
"""Of a document are printed; `--json` has all."""


@dataclass(frozen=True)
class Passage:
    """Part of a document, or all of it."""

    document: int | None
    """Its number in the file, from 0. None: the file has no index, and this is all that lies side by side there."""
    offset: int | None
    """Tokens of the document that come before."""
    whole: bool | None
    """Whether this is the whole document."""
    tokens: int
    ids: list[int]
    text: str | None
    """None: the tokenizer is not on this machine."""


@dataclass(frozen=True)
class Place:
    """Tokens that lie one after the other in a file."""

    file: str
    first_token: int
    tokens: int
    passages: list[Passage]


@dataclass(frozen=True)
class Sample:
    """One row of the batch."""

    sample: int
    """Its number in the run's order, from 0."""
    rank: int
    """The data-parallel rank that trains on it in the run's present layout."""
    micro_batch: int
    row: int
    source: str
    window: int
    padding: int
    places: list[Place]


@dataclass(frozen=True)
class Batch:
    """What one step trains on."""

    run: str
    step: int
    batch: int
    """Number in the run's order: above `step` once batches have been skipped."""
    stage: str
    size: int
    """Samples in it, of one rank where one was asked for."""
    sources: dict[str, int]
    """How many of them come from each source."""
    targets: int
    """Tokens that are predicted in the whole batch."""
    padding: float
    """Share of the whole batch that predicts nothing."""
    wasted: dict[str, float]
    """`Windows.wasted` of each source."""
    samples: list[Sample]


def show(run: str, runs_dir: Path, step: int, *, rank: int | None = None, most: int = 4) -> Batch:
    """The batch of `step`, with up to `most` (-1: all) of its samples read. Raises DataError."""
    folder, config = _load(run, runs_dir)
    if not 1 <= step <= config.train.steps:
        raise DataError(f"--step {step}: the run {folder.name} has the steps 1 to train.steps={config.train.steps}")
    if most < -1:
        raise DataError(f"--samples {most}: give a number of samples, or -1 for all")
    dp, micro = layout(config).dp, config.train.micro_batch_size
    if rank is not None and not 0 <= rank < dp:
        raise DataError(f"--rank {rank}: the run has {dp} data-parallel ranks, 0 to {dp - 1}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the plan has shown them
        order = open_order(config.data, config.train.global_batch_size, build=False, outlines=True)
    batch = Skips(config.train.skip).batch_of_step(step)
    size = order.global_batch_size
    offsets = np.arange(size)
    ranks = offsets % (micro * dp) // micro
    indices = (batch - 1) * size + offsets
    numbers, windows = order.samples(indices)
    targets = sum(cut.targets(windows[numbers == number]) for number, cut in enumerate(order.windows))
    chosen = offsets if rank is None else np.flatnonzero(ranks == rank)
    decoder = _Decoder(config.data)
    samples = [
        Sample(
            sample=int(indices[at]),
            rank=int(ranks[at]),
            micro_batch=int(at // (micro * dp)),
            row=int(at % micro),
            **_read(order, int(numbers[at]), int(windows[at]), decoder),
        )
        for at in (chosen if most == -1 else chosen[:most])
    ]
    return Batch(
        run=str(folder),
        step=step,
        batch=batch,
        stage=order.stage_of(int(indices[0])),
        size=len(chosen),
        sources={
            source.name: int((numbers[chosen] == number).sum())
            for number, source in enumerate(order.sources)
            if (numbers[chosen] == number).any()
        },
        targets=targets,
        padding=1 - targets / (size * order.seq_len),
        wasted={cut.source.name: cut.wasted for cut in order.windows},
        samples=samples,
    )


def as_json(batch: Batch) -> str:
    """The whole of it."""
    return json.dumps(dataclasses.asdict(batch), ensure_ascii=False, indent=1)


def render(batch: Batch) -> str:
    """As a person reads it."""
    skipped = "" if batch.batch == batch.step else f" trains on batch {batch.batch}, since train.skip leaves some out,"
    sources = ", ".join(f"{name} {count}" for name, count in batch.sources.items())
    lines = [
        f"step {batch.step} of {batch.run}{skipped}: {batch.size} samples ({sources}); stage {batch.stage}",
        f"{batch.targets:,} tokens are predicted in the whole batch; {batch.padding:.2%} of it is padding",
    ]
    for sample in batch.samples:
        padding = f", {sample.padding} tokens of padding" if sample.padding else ""
        lines.append(
            f"\nsample {sample.sample}: {sample.source}, window {sample.window} (rank {sample.rank}, micro batch "
            f"{sample.micro_batch}, row {sample.row}){padding}"
        )
        for place in sample.places:
            lines.append(f"  {place.file}, tokens {place.first_token:,} to {place.first_token + place.tokens - 1:,}")
            lines += [line for passage in place.passages for line in _render_passage(passage)]
    if left := batch.size - len(batch.samples):
        lines.append(f"\n{left} more samples: --samples -1 prints all")
    return "\n".join(lines)


def _render_passage(passage: Passage) -> list[str]:
    if passage.document is None:
        what = f"{passage.tokens} tokens (no index beside the file: documents are not known)"
    elif passage.whole:
        what = f"document {passage.document:,}, all of its {passage.tokens} tokens"
    else:
        what = f"document {passage.document:,}, {passage.tokens} tokens from its token {passage.offset:,} on"
    text = passage.text
    if text is None:
        shown = " ".join(map(str, passage.ids[: TEXT_CHARACTERS // 5])) + " ..." * (
            passage.tokens > TEXT_CHARACTERS // 5
        )
        return [f"    {what} (tokenizer not on this machine: ids)", f"      {shown}"]
    shown = text if len(text) <= TEXT_CHARACTERS else text[:TEXT_CHARACTERS] + " ..."
    return [f"    {what}", *(f"      {line}" for line in shown.splitlines())]


def _load(run: str, runs_dir: Path) -> tuple[Path, RootConfig]:
    from harness.run.folder import RunFolder, RunFolderError, find_run

    folder = find_run(run, runs_dir)
    try:
        return folder, RunFolder(folder).load_config()
    except RunFolderError as error:
        raise DataError(f"{run}: {error}. Give the name of a run in --runs-dir {runs_dir}, or its folder.") from None


def _read(order: SampleOrder, number: int, window: int, decoder: "_Decoder") -> dict[str, Any]:
    cut = order.windows[number]
    pieces = cut.pieces(window)
    return {
        "source": cut.source.name,
        "window": window,
        "padding": cut.seq_len + 1 - sum(piece.tokens for piece in pieces),
        "places": [_place(cut, piece, decoder) for piece in pieces],
    }


def _place(cut: Windows, piece: Piece, decoder: "_Decoder") -> Place:
    source, width = cut.source, cut.source.token_size
    path = source.files[piece.file].path
    file = join(source.store.url, path.name) if source.store else str(path)
    try:
        data = source.folder.read(path.name, piece.offset, piece.tokens * width)
        ids = np.frombuffer(data[: len(data) // width * width], DTYPES[width]).tolist()
        first = piece.offset // width
        passages = [
            Passage(document, offset, whole, end - begin, ids[begin:end], decoder.text(source, ids[begin:end]))
            for document, offset, whole, begin, end in _documents(source.folder, path, first, piece.tokens)
        ]
    except OSError as error:
        raise DataError(f"{error.filename or file} cannot be read: {error.strerror or error}") from None
    if len(ids) < piece.tokens:
        raise DataError(f"{file} ends before token {first + piece.tokens}: it was cut off after the run had started")
    return Place(file, first, piece.tokens, passages)


class _Ends(Sequence[int]):
    """Where the documents of a file end, in tokens; each is read when it is asked for, however many there are."""

    def __init__(self, folder: Folder, index: str, size: int) -> None:
        self._folder, self._index, self._count = folder, index, size // 8

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: Any) -> Any:
        return int.from_bytes(self._folder.read(self._index, 8 * number, 8), "little")


def _documents(
    folder: Folder, path: Path, first: int, count: int
) -> list[tuple[int | None, int | None, bool | None, int, int]]:
    """(number, tokens of it before, whether whole, begin, end) of each document in `count` tokens from `first` on; begin
    and end count from `first`. Looks at few places of the index, however large it is. Raises OSError."""
    size = folder.size(index_path(path).name)
    if size is None or size < 8:
        return [(None, None, None, 0, count)]
    ends = _Ends(folder, index_path(path).name, size)
    found: list[tuple[int | None, int | None, bool | None, int, int]] = []
    number, at = bisect_right(ends, first), first
    while at < first + count and number < len(ends):
        begin, end = ends[number - 1] if number else 0, ends[number]
        until = min(end, first + count)
        if until > at:  # not an empty document
            found.append((number, at - begin, at == begin and until == end, at - first, until - first))
        number, at = number + 1, until
    return found


class _Decoder:
    """Turns ids into text where a source's tokenizer is on this machine."""

    def __init__(self, data: DataConfig) -> None:
        self._data = data
        self._tokenizers: dict[Path | None, Any] = {None: None}

    def text(self, source: TokenSource, ids: list[int]) -> str | None:
        path = find_tokenizer(self._data, source)
        if path not in self._tokenizers:
            from tokenizers import Tokenizer

            try:
                self._tokenizers[path] = Tokenizer.from_file(str(path))
            except Exception as error:  # the library raises plain Exception
                raise DataError(f"{path} is not a tokenizer.json of the tokenizers library: {error}") from None
        tokenizer = self._tokenizers[path]
        return None if tokenizer is None else str(tokenizer.decode(ids, skip_special_tokens=False))
