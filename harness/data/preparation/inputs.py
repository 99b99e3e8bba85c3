"""What `harness.data prepare` is asked to read: which format, which files, how much, and how to recognise it again."""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.documents.compressed import OPENERS, split_compression
from harness.data.documents.passed_over import PassedOver, examples, printable
from harness.data.documents.walk import Found, FoundFile, look_at, walk
from harness.data.errors import DataError
from harness.data.preparation.folder import partial_path

SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
"""Format -> suffixes of its files. Those of text and jsonl may be followed by one of `OPENERS`."""
FORMATS = (*SUFFIXES, "dataset")
TASK_BYTES = 1 << 25
"""About so much input makes one task, and so one token file. Depends on the input alone: more workers, same files."""
MAX_TASK_BYTES = 1 << 28
MANY_TASKS = 10_000
"""Of more input, tasks are larger, up to `MAX_TASK_BYTES`, rather than more."""


@dataclass(frozen=True)
class Inputs:
    """Documents to read."""

    path: str
    """As the user gave it, several joined by commas; for `dataset` the folder of one split, or a hub name."""
    format: str
    text_key: str
    files: tuple[str, ...] = ()
    """Absolute, in the order in which they are shared out to tasks."""
    stats: tuple[tuple[int, int], ...] = ()
    """Size and time of change (ns) of each of `files`, by which a reader sees that one has changed since."""
    total: int | None = None
    """Bytes (text, jsonl) or rows (parquet, dataset) in all, for the progress bar; None: unknown (compressed)."""
    tasks: int = 1
    split: str | None = None
    """Split of a data set on the hub; None: saved on disk."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Changes when the input does: a digest of names, sizes and times of the files, or the data set's fingerprint."""
    passed_over: tuple[PassedOver, ...] = ()
    """Files of the input that are not read."""

    @property
    def unit(self) -> str:
        """What `total` counts, as tqdm shows it."""
        return "B" if self.format in ("text", "jsonl") else " rows"


def find_inputs(paths: str | Sequence[str], format: str | None, text_key: str, but: Path | None = None) -> Inputs:
    """Work out what `paths` hold together. `but`: the output, which may lie in a folder that is read.

    Raises DataError when one does not exist or is given twice, when they hold nothing to read, or several formats.
    """
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not all(paths):
        raise DataError("--input: empty. Name a file or a folder.")
    _refuse_overlap(paths)
    for path in paths:
        data_set = _data_set(path, format, text_key)
        if data_set is not None and len(paths) > 1:
            raise DataError(
                f"--input {path}: a data set of the library datasets must be the only --input. Prepare it by itself."
            )
        if data_set is not None:
            return data_set
    outputs = [str(but), str(partial_path(but))] if but else []
    found = [_look(path, outputs) for path in paths]
    named = " --input ".join(paths)
    format = format or _format_of(named, found)
    chosen = [_choose(one, format, path) for one, path in zip(found, paths, strict=True)]
    for path, one in zip(paths, chosen, strict=True):
        _refuse_nothing(path, format, one)
    return _from_files(named, format, text_key, chosen)


def _refuse_overlap(paths: list[str]) -> None:
    real = [os.path.realpath(os.path.expanduser(path)) for path in paths]
    for at, one in enumerate(real):
        for other in range(at):
            if one == real[other] or one.startswith(f"{real[other]}/") or real[other].startswith(f"{one}/"):
                raise DataError(
                    f"--input {paths[at]}: overlaps --input {paths[other]}: documents would be read twice. Leave one out."
                )


def _data_set(path: str, format: str | None, text_key: str) -> Inputs | None:
    """None: `path` holds files."""
    place = Path(path).expanduser()
    if not place.exists():
        if format == "dataset":
            return _hub_dataset(path, text_key)
        raise DataError(f"--input {path}: does not exist. For the name of a data set on the hub add --format dataset.")
    if format in (None, "dataset") and (saved := _saved_dataset(place)):
        return _disk_dataset(*saved, text_key)
    if format == "dataset":
        raise DataError(
            f"--input {path}: no data set saved with save_to_disk (no state.json or dataset_dict.json in it)"
        )
    return None


def _look(path: str, but: list[str]) -> Found:
    place = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(place):
        return walk(place, but)
    try:
        return Found([look_at(place)])
    except OSError as error:
        raise DataError(f"--input {path}: cannot be read: {error.strerror}") from None


def _kind(name: str) -> str | None:
    """The format that a file's name tells."""
    plain, compression = split_compression(name)
    for kind, suffixes in SUFFIXES.items():
        if plain.endswith(suffixes) and not (compression and kind == "parquet"):
            return kind
    return None


def _format_of(named: str, found: list[Found]) -> str:
    there = {_kind(file.name) for one in found for file in one.files if file.size}
    kinds = [kind for kind in SUFFIXES if kind in there]
    if len(kinds) > 1:
        raise DataError(f"--input {named}: holds {' and '.join(kinds)} files. Choose one with --format.")
    if kinds:
        return kinds[0]
    if any(_kind(file.name) for one in found for file in one.files):
        raise DataError(f"--input {named}: all files are empty")
    suffixes = ", ".join(suffix for kind in SUFFIXES.values() for suffix in kind)
    raise DataError(
        f"--input {named}: no file to read. Names must end in {suffixes}; text and JSON may be compressed ({', '.join(OPENERS)}). "
        f"A single file may have any name with --format.{_listing(found)}"
    )


def _listing(found: list[Found]) -> str:
    """What lies there instead, for an error."""
    entries = [PassedOver(printable(file.path), "unknown suffix") for one in found for file in one.files]
    lines = list(examples(entries + [entry for one in found for entry in one.passed_over]))
    return "".join(f"\n  {line}" for line in lines)


def _choose(found: Found, format: str, path: str) -> Found:
    """The files that are read, and why the others are not."""
    chosen = Found(passed_over=list(found.passed_over))
    named = os.path.isfile(os.path.expanduser(path))
    for file in found.files:
        kind = format if named else _kind(file.name)
        if kind is None:
            reason = "unknown suffix"
        elif kind != format:
            reason = f"another format ({kind})"
        elif not file.size:
            reason = "empty file"
        else:
            chosen.files.append(file)
            continue
        chosen.passed_over.append(PassedOver(printable(file.path), reason))
    return chosen


def _refuse_nothing(path: str, format: str, chosen: Found) -> None:
    """Each of several inputs must have something to read."""
    if chosen.files:
        return
    if any(entry.reason == "empty file" for entry in chosen.passed_over):
        raise DataError(f"--input {path}: all files are empty")
    raise DataError(
        f"--input {path}: no {format} file. Names must end in {', '.join(SUFFIXES[format])}.{_listing([chosen])}"
    )


def _from_files(path: str, format: str, text_key: str, found: list[Found]) -> Inputs:
    files = [file for one in found for file in one.files]
    passed_over = tuple(entry for one in found for entry in one.passed_over)
    size = sum(file.size for file in files)
    total: int | None = size
    if format == "parquet":
        total = sum(_parquet_rows(file.path, text_key) for file in files)
    elif any(split_compression(file.name)[1] for file in files):
        total = None
    return Inputs(
        path,
        format,
        text_key,
        tuple(file.path for file in files),
        tuple((file.size, file.modified_ns) for file in files),
        total,
        min(len(files), _tasks(size)),
        identity={"files": len(files), "digest": _digest(one.files for one in found)},
        passed_over=passed_over,
    )


def _digest(inputs: Iterable[list[FoundFile]]) -> str:
    listing = [[[file.name, file.size, file.modified_ns] for file in files] for files in inputs]
    return hashlib.blake2b(json.dumps(listing).encode(), digest_size=16).hexdigest()


def _tasks(size: int) -> int:
    return max(1, size // min(max(TASK_BYTES, size // MANY_TASKS), MAX_TASK_BYTES))


def _parquet_rows(file: str, text_key: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with open(file, "rb") as opened:  # Arrow itself opens no name that is not UTF-8
            metadata = pq.read_metadata(opened)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{printable(file)}: no Parquet file: {error}") from None
    columns = metadata.schema.to_arrow_schema().names
    if text_key not in columns:
        raise DataError(f"{printable(file)}: no column {text_key!r}; there are {', '.join(columns)}. Pass --text-key.")
    return int(metadata.num_rows)


def _saved_dataset(place: Path) -> tuple[Path, tuple[PassedOver, ...]] | None:
    """The folder of one split under a folder written by `save_to_disk`, and the splits that are not read."""
    if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
        return place, ()
    if (place / "dataset_dict.json").is_file():
        try:
            splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"--input {place}: its dataset_dict.json cannot be read: {error!r}") from None
        split = _choose_split(splits, str(place))
        return place / split, _other_splits(splits, split)
    return None


def _choose_split(splits: list[str], path: str) -> str:
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"--input {path}: has the splits {', '.join(splits)} and no 'train'. Save the one you want by itself."
    )


def _other_splits(splits: list[str], chosen: str) -> tuple[PassedOver, ...]:
    return tuple(PassedOver(f"{split}/", "another split") for split in splits if split != chosen)


def _disk_dataset(folder: Path, passed_over: tuple[PassedOver, ...], text_key: str) -> Inputs:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many kinds for a damaged folder
        raise DataError(f"--input {folder}: datasets cannot open it: {error}") from None
    return _from_dataset(str(folder.absolute()), dataset, text_key, None, passed_over)


def _hub_dataset(name: str, text_key: str) -> Inputs:
    from datasets import get_dataset_split_names, load_dataset

    try:
        splits = get_dataset_split_names(name)
        split = _choose_split(splits, name)
        dataset = load_dataset(name, split=split)
    except DataError:
        raise
    except Exception as error:  # no such data set, no network, gated, needs a config name, ...
        raise DataError(f"--input {name}: no such path, and datasets cannot load it from the hub: {error}") from None
    return _from_dataset(name, dataset, text_key, split, _other_splits(splits, split))


def _from_dataset(
    path: str, dataset: Any, text_key: str, split: str | None, passed_over: tuple[PassedOver, ...]
) -> Inputs:
    if text_key not in dataset.column_names:
        raise DataError(
            f"--input {path}: no column {text_key!r}; there are {', '.join(dataset.column_names)}. Pass --text-key."
        )
    rows = dataset.num_rows
    if rows == 0:
        raise DataError(f"--input {path}: the data set is empty")
    identity = {"fingerprint": dataset._fingerprint, "rows": rows, "split": split}
    tasks = min(rows, _tasks(dataset.data.nbytes))
    return Inputs(
        path, "dataset", text_key, total=rows, tasks=tasks, split=split, identity=identity, passed_over=passed_over
    )
