"""What `harness.data prepare` is asked to read: which format, which files, how much, and how to recognise it again."""

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.data.errors import DataError

SUFFIXES = {
    "text": (".txt", ".text", ".md", ".rst"),
    "jsonl": (".jsonl", ".jsonl.gz"),
    "parquet": (".parquet",),
}
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
    """As the user gave it; for `dataset` the folder of one split, or a hub name."""
    format: str
    text_key: str
    root: Path = Path()
    """Folder that `files` are relative to."""
    files: tuple[str, ...] = ()
    total: int | None = None
    """Bytes (text, jsonl) or rows (parquet, dataset) in all, for the progress bar; None: unknown (gz)."""
    tasks: int = 1
    split: str | None = None
    """Split of a data set on the hub; None: saved on disk."""
    identity: dict[str, Any] = field(default_factory=dict)
    """Changes when the input does: a digest of names, sizes and times of the files, or the data set's fingerprint."""

    @property
    def unit(self) -> str:
        """What `total` counts, as tqdm shows it."""
        return "B" if self.format in ("text", "jsonl") else " rows"


def find_inputs(path: str, format: str | None, text_key: str) -> Inputs:
    """Work out what `path` holds. Raises DataError when it does not exist, holds nothing, or holds several formats."""
    place = Path(path).expanduser()
    if not place.exists():
        if format == "dataset":
            return _hub_dataset(path, text_key)
        raise DataError(f"--input {path}: does not exist. For the name of a data set on the hub add --format dataset.")
    if format in (None, "dataset") and (saved := _saved_dataset(place)):
        return _disk_dataset(saved, text_key)
    if format == "dataset":
        raise DataError(
            f"--input {path}: no data set saved with save_to_disk (no state.json or dataset_dict.json in it)"
        )
    root, files = (place.parent, [place]) if place.is_file() else (place, _files_under(place))
    found = {kind: [file for file in files if file.name.lower().endswith(ends)] for kind, ends in SUFFIXES.items()}
    if format is None:
        kinds = [kind for kind, matching in found.items() if matching]
        if len(kinds) > 1:
            raise DataError(f"--input {path}: holds {' and '.join(kinds)} files. Choose one with --format.")
        if not kinds:
            wanted = ", ".join(end for ends in SUFFIXES.values() for end in ends)
            raise DataError(
                f"--input {path}: no file to read. Names must end in {wanted}; a single file may have any with --format."
            )
        format = kinds[0]
    chosen = files if place.is_file() else found[format]
    if not chosen:
        raise DataError(f"--input {path}: no {format} file. Names must end in {', '.join(SUFFIXES[format])}.")
    return _from_files(path, format, text_key, root, chosen)


def _files_under(folder: Path) -> list[Path]:
    """All files at any depth, sorted. Raises DataError for a folder that cannot be read: it must not be passed over."""

    def refuse(error: OSError) -> None:
        raise DataError(f"--input {error.filename}: cannot be read: {error.strerror}")

    return sorted(Path(parent) / name for parent, _, names in os.walk(folder, onerror=refuse) for name in names)


def _from_files(path: str, format: str, text_key: str, root: Path, files: list[Path]) -> Inputs:
    try:
        stats = [file.stat() for file in files]
    except OSError as error:  # a link to nothing, say
        raise DataError(f"--input {error.filename}: cannot be read: {error.strerror}") from None
    names = tuple(str(file.relative_to(root)) for file in files)
    size = sum(stat.st_size for stat in stats)
    if size == 0:
        raise DataError(f"--input {path}: all files are empty")
    total: int | None = size
    if format == "parquet":
        total = sum(_parquet_rows(file, text_key) for file in files)
    elif any(name.endswith(".gz") for name in names):
        total = None
    listing = [[name, stat.st_size, stat.st_mtime_ns] for name, stat in zip(names, stats, strict=True)]
    digest = hashlib.blake2b(json.dumps(listing).encode(), digest_size=16).hexdigest()
    tasks = min(len(files), _tasks(size))
    return Inputs(path, format, text_key, root, names, total, tasks, identity={"files": len(files), "digest": digest})


def _tasks(size: int) -> int:
    return max(1, size // min(max(TASK_BYTES, size // MANY_TASKS), MAX_TASK_BYTES))


def _parquet_rows(file: Path, text_key: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(file)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{file}: no Parquet file: {error}") from None
    columns = metadata.schema.to_arrow_schema().names
    if text_key not in columns:
        raise DataError(f"{file}: no column {text_key!r}; there are {', '.join(columns)}. Pass --text-key.")
    return int(metadata.num_rows)


def _saved_dataset(place: Path) -> Path | None:
    """The folder of one split under a folder written by `save_to_disk`."""
    if (place / "state.json").is_file() and (place / "dataset_info.json").is_file():
        return place
    if (place / "dataset_dict.json").is_file():
        splits = json.loads((place / "dataset_dict.json").read_text())["splits"]
        return place / _choose_split(splits, str(place))
    return None


def _choose_split(splits: list[str], path: str) -> str:
    if "train" in splits:
        return "train"
    if len(splits) == 1:
        return splits[0]
    raise DataError(
        f"--input {path}: has the splits {', '.join(splits)} and no 'train'. Save the one you want by itself."
    )


def _disk_dataset(folder: Path, text_key: str) -> Inputs:
    from datasets import load_from_disk

    try:
        dataset = load_from_disk(str(folder))
    except Exception as error:  # datasets raises many kinds for a damaged folder
        raise DataError(f"--input {folder}: datasets cannot open it: {error}") from None
    return _from_dataset(str(folder), dataset, text_key, None)


def _hub_dataset(name: str, text_key: str) -> Inputs:
    from datasets import get_dataset_split_names, load_dataset

    try:
        split = _choose_split(get_dataset_split_names(name), name)
        dataset = load_dataset(name, split=split)
    except DataError:
        raise
    except Exception as error:  # no such data set, no network, gated, needs a config name, ...
        raise DataError(f"--input {name}: no such path, and datasets cannot load it from the hub: {error}") from None
    return _from_dataset(name, dataset, text_key, split)


def _from_dataset(path: str, dataset: Any, text_key: str, split: str | None) -> Inputs:
    if text_key not in dataset.column_names:
        raise DataError(
            f"--input {path}: no column {text_key!r}; there are {', '.join(dataset.column_names)}. Pass --text-key."
        )
    rows = dataset.num_rows
    if rows == 0:
        raise DataError(f"--input {path}: the data set is empty")
    identity = {"fingerprint": dataset._fingerprint, "rows": rows, "split": split}
    tasks = min(rows, _tasks(dataset.data.nbytes))
    return Inputs(path, "dataset", text_key, total=rows, tasks=tasks, split=split, identity=identity)
