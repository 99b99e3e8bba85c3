"""Which files a run needs from its sources from some step on, in the order in which it will need them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from harness.config.schema import DataConfig, Packing
from harness.data.errors import DataError
from harness.data.order import SampleOrder
from harness.data.origins import MANIFEST, join, list_folder, manifest_sums, split
from harness.data.packing import TABLE_FILES, locate_table
from harness.data.stage_paths import staged_folder
from harness.data.token_files import open_source, source_key

TOKENIZER_FOLDER = "tokenizer"
"""Where `harness.data prepare` leaves the tokenizer, below the token files: their metadata name it there."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
"""What may be read of a tokenizer; some lay it right beside the token files."""
LOOK_AHEAD_SAMPLES = 1 << 18
"""Samples that are followed one by one to see which files they touch; what comes later is estimated from the weights."""
CHUNK_SAMPLES = 1 << 14
FURTHEST_POWER = 31
"""Steps that an estimate reaches ahead, as a power of two."""


@dataclass(frozen=True)
class StageFile:
    """A file to be copied."""

    source: str
    """Name of its source in `data.sources`."""
    origin: str
    """Path or URL of the original."""
    folder: Path
    """Where all copies of its source lie."""
    name: str
    """Below that folder, as below the original's: `000.ds` or `tokenizer/tokenizer.json`."""
    size: int
    modified_ns: int | None
    """Modification time of the original; None where its store tells none."""
    sha256: str | None
    """What the manifest beside the original says."""

    @property
    def copy(self) -> Path:
        """Where the copy goes."""
        return self.folder / self.name


def plan_files(data: DataConfig, stage_to: str | Path, step: int = 0) -> list[StageFile]:
    """Every file of the sources that have a weight after `step` steps: token files and what lies beside them under their
    names, with the folder's manifest, tokenizer and packing table. Sources in the order of the config; of each, what is needed to open
    it comes first, then files by name.

    Raises DataError that lists every source that can't be listed or holds no token files.
    """
    problems: list[str] = []
    files: list[StageFile] = []
    seen: set[Path] = set()
    for name in _needed(data, step):
        try:
            found = [*_table_of(name, data, stage_to), *_files_of(name, data.sources[name].path, stage_to)]
        except DataError as error:
            problems.append(str(error))
            continue
        files += [file for file in found if file.copy not in seen]  # two sources may name the same files
        seen.update(file.copy for file in found)
    if problems:
        raise DataError("\n".join(problems))
    return files


def in_order_of_use(files: Sequence[StageFile], order: SampleOrder, step: int) -> list[StageFile]:
    """The same files by the step that first needs them; what lies beside a token file comes right before it."""
    first = {
        str(order.sources[source].files[number].path): use for (source, number), use in first_uses(order, step).items()
    }
    last = max(first.values(), default=0.0) + 1

    def place(file: StageFile) -> tuple[float, str, bool, str]:
        token_file = _token_file(file.origin)
        use = first.get(token_file, last) if _is_data(file.name) else -1.0
        return (use, token_file, file.origin == token_file, file.name)

    return sorted(files, key=place)


def shuffled(files: Sequence[StageFile], node: str) -> list[StageFile]:
    """The same files in an order of the node's own: nodes that start together fetch different ones from shared storage,
    and then the rest from each other."""
    mixed = list(files)
    random.Random(node).shuffle(mixed)
    return mixed


def first_uses(order: SampleOrder, step: int) -> dict[tuple[int, int], float]:
    """(number of the source, number of the file) -> the step that first reads it, when `step` steps are done.

    Exact as far as `LOOK_AHEAD_SAMPLES` reach; estimated for files that none of those touches, so that they come after all
    others and in the order of their stage, their source's weight and their size. Sources without weight are left out.
    """
    uses: dict[tuple[int, int], float] = {}
    expected = _expected_uses(order, step)
    begin, batch = step * order.global_batch_size, order.global_batch_size
    soon = {key for key, use in expected.items() if use <= step + LOOK_AHEAD_SAMPLES / batch}
    for start in range(begin, begin + LOOK_AHEAD_SAMPLES, CHUNK_SAMPLES):
        indices = np.arange(start, start + CHUNK_SAMPLES)
        sources, numbers = order.samples(indices)
        for index, source, window in zip(indices.tolist(), sources.tolist(), numbers.tolist(), strict=True):
            for piece in order.windows[source].pieces(window):
                uses.setdefault((source, piece.file), index // batch)
        if soon <= uses.keys():
            break
    horizon = max(uses.values(), default=float(step))
    return uses | {key: horizon + use for key, use in expected.items() if key not in uses}


def _expected_uses(order: SampleOrder, step: int) -> dict[tuple[int, int], float]:
    """About when each file is first read if windows are drawn at random: the more of the source it is, the sooner.

    From how many samples of each source lie before 1, 2, 4, ... more steps; a source that gets none is left out.
    """
    batch = order.global_batch_size
    ahead = [0, *(1 << power for power in range(FURTHEST_POWER))]
    taken = np.array([order.counts((step + steps) * batch) for steps in ahead])
    taken = taken - taken[0]
    expected: dict[tuple[int, int], float] = {}
    for number, source in enumerate(order.sources):
        for index, file in enumerate(source.files if taken[-1, number] else ()):
            wanted = source.tokens / max(1, file.tokens)  # so many samples of the source until one is of this file
            expected[number, index] = step + float(np.interp(wanted, taken[:, number], ahead))
    return expected


def _needed(data: DataConfig, step: int) -> list[str]:
    """Sources with a weight in a stage that is not over after `step` steps."""
    all_stages = [*data.stages, *(stage for change in data.change_at for stage in change.stages)]
    stages = [stage for stage in all_stages if stage.until_step is None or stage.until_step > step]
    return [name for name in data.sources if any(stage.weights.get(name, 0) > 0 for stage in stages)]


def _files_of(name: str, path: str, stage_to: str | Path) -> list[StageFile]:
    key = source_key(name, path)
    if not path:
        raise DataError(f"data.sources.{name}.path is not set. Give a folder that python -m harness.data prepare made.")
    folder, only = split(path)
    there = list_folder(folder, key)
    token_files = [file for file in there if file.endswith(".ds") and only in (None, file)]
    if not token_files:
        raise DataError(f"{key} holds no .ds files. Give a folder that python -m harness.data prepare made.")
    wanted = {
        file: there[file] for file in there if _token_file(file) in token_files or file in (MANIFEST, *TOKENIZER_FILES)
    }
    for file in list_folder(join(folder, TOKENIZER_FOLDER), key, missing_ok=True).values():
        wanted[f"{TOKENIZER_FOLDER}/{file.name}"] = file
    try:
        sums = manifest_sums(folder, there)
    except OSError as error:
        raise DataError(f"{key}: {MANIFEST} cannot be read: {error.strerror or error}") from None
    copies = staged_folder(stage_to, folder)
    return [
        StageFile(name, join(folder, file), copies, file, found.size, found.modified_ns, sums.get(file))
        for file, found in sorted(wanted.items(), key=lambda item: (_is_data(item[0]), item[0]))
    ]


def _table_of(name: str, data: DataConfig, stage_to: str | Path) -> list[StageFile]:
    """The table of `data.packing=best_fit`, beside the token files or in `data.packing_cache`, where there is one already."""
    if data.packing is not Packing.best_fit:
        return []
    source = open_source(name, data.sources[name].path)
    table = locate_table(source, data)
    if table is None:
        return []
    table_name, place = table
    copies = staged_folder(stage_to, split(data.sources[name].path)[0])
    found = list_folder(place, source.key)
    return [
        StageFile(
            name, join(place, file), copies, f"{table_name}/{file}", found[file].size, found[file].modified_ns, None
        )
        for file in TABLE_FILES
        if file in found
    ]


def _is_data(name: str) -> bool:
    """Whether a file is a token file or lies beside one; else it belongs to the whole source."""
    return ".ds" in name and "/" not in name


def _token_file(path: str) -> str:
    """The token file that a file lies beside (`X.ds` of `X.ds.index`), or itself."""
    folder, slash, name = path.rpartition("/")
    stem, found, _ = name.partition(".ds.")
    return f"{folder}{slash}{stem}.ds" if found else path
