"""manifest.json: what a checkpoint consists of, and which run it belongs to. Written last. Imports no torch."""

import dataclasses
import errno
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.config.schema import UNSET, ModelConfig, RootConfig
from harness.data.errors import DataError
from harness.data.skips import Range, Skips
from harness.run.files import read_json, write_json

NAME = "manifest.json"
FORMAT = 1
_BLOCK = 8 * 2**20

ABOUT_THE_BEGINNING = ("model.init_from", "model.init_from_changes")
"""Say where the run began; once it has a checkpoint they change nothing."""


AWAY = frozenset(
    {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}
)
"""Why a file can't be read now, and will be: its mount is away, or this process is short of something."""


class CorruptCheckpoint(Exception):
    """The checkpoint can't be used; the message says which file and why."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint, with its size in bytes and CRC-32."""

    name: str
    size: int
    crc32: int


@dataclass(frozen=True)
class Manifest:
    step: int
    tokens: int
    """Tokens trained on so far."""
    world_size: int
    """Ranks that wrote it; any number can read it."""
    attempt: int
    identity: dict[str, Any]
    """What must be the same in the run that goes on from here, see `identity`."""
    files: tuple[FileRecord, ...]
    torch: str
    time: float
    """Unix time at which it was complete."""
    skips: tuple[Range, ...] = ()
    """Ranges of batches that were left out so far, see `harness.data.skips`; older checkpoints do not say, and left out none."""
    changes: tuple[dict[str, Any], ...] = ()
    """Changes of the mixture that lie behind it, see `harness.data.lineage`; older checkpoints do not say, and had none."""
    lr: float | None = None
    """Learning rate of its last step; older checkpoints do not say."""
    lr_share: float | None = None
    """The same as a share of the peak."""
    format: int = FORMAT

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(record.size for record in self.files)

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_json(folder / NAME, dataclasses.asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """Raises CorruptCheckpoint where there is none, or not one of this version."""
        try:
            found = read_json(folder / NAME)
        except (OSError, ValueError) as error:
            not_if_away(error)
            raise CorruptCheckpoint(f"{NAME} can't be read: {error}") from error
        if found is None:
            raise CorruptCheckpoint(f"{NAME} is missing")
        try:
            if found["format"] != FORMAT:
                raise CorruptCheckpoint(f"{NAME} has format {found['format']}, this version reads {FORMAT}")
            files = tuple(FileRecord(str(f["name"]), int(f["size"]), int(f["crc32"])) for f in found.pop("files"))
            skips = Skips(found.pop("skips", ())).ranges
            changes = tuple({**change, "step": int(change["step"])} for change in found.pop("changes", ()))
            known = found.pop("identity")
            if "model.model_type" in known:
                known = {**_model_defaults(), **known}
            return _checked(cls(identity=known, files=files, skips=skips, changes=changes, **found))
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError, DataError) as error:
            raise CorruptCheckpoint(f"{NAME} is not complete: {error!r}") from error


def _checked(manifest: Manifest) -> Manifest:
    """Raises TypeError for fields of another type: people copy and edit checkpoints."""
    counts = (manifest.step, manifest.tokens, manifest.world_size, manifest.attempt)
    if not all(isinstance(count, int) and not isinstance(count, bool) and count >= 0 for count in counts):
        raise TypeError("step, tokens, world_size and attempt must be whole numbers")
    if not isinstance(manifest.identity, dict) or not isinstance(manifest.time, int | float):
        raise TypeError("identity must be an object and time a number")
    return manifest


def identity(config: RootConfig, data_definition: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must have in common with its checkpoint: the model and the definition of the data's order (which
    holds the batch). Flat, so that a difference names its key."""
    model = {f"model.{f.name}": getattr(config.model, f.name) for f in dataclasses.fields(config.model)}
    for key in ABOUT_THE_BEGINNING:
        del model[key]
    return {
        **model,
        "data.document_mask": config.data.document_mask,
        **_flatten("data", data_definition),
    }


def _model_defaults() -> dict[str, Any]:
    """What an older checkpoint does not say of its model: keys that came later, with which it had the default."""
    defaults = {f"model.{name}": value for name, value in vars(ModelConfig()).items() if value != UNSET}
    return {key: value for key, value in defaults.items() if key not in ABOUT_THE_BEGINNING}


def whole_identity(identity: Mapping[str, Any], changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An identity with the changes of the mixture so far, by their steps."""
    return {**identity, **_flatten("data.change_at", {str(change["step"]): change for change in changes})}


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One line per key that differs, with both values."""
    keys = sorted(saved.keys() | now.keys())
    return [
        f"{key}: {saved.get(key)} in the checkpoint, {now.get(key)} now"
        for key in keys
        if saved.get(key) != now.get(key)
    ]


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {prefix: value}
    return {name: leaf for key, item in items for name, leaf in _flatten(f"{prefix}.{key}", item).items()}


def not_if_away(error: BaseException) -> None:
    """Raise `error` itself if it says nothing about the checkpoint: to pass over a good one would cost its steps."""
    if isinstance(error, OSError) and error.errno in AWAY:
        raise error


def describe_file(path: Path) -> FileRecord:
    """Size and checksum of a file. Raises OSError."""
    return FileRecord(path.name, path.stat().st_size, crc32(path))


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes (over 1 GB/s on one core, and damage is what it is there to find). Raises OSError."""
    value = 0
    with open(path, "rb", buffering=0) as f:
        block = bytearray(_BLOCK)
        while count := f.readinto(block):
            value = zlib.crc32(memoryview(block)[:count], value)
    return value


def check_sizes(folder: Path, manifest: Manifest) -> None:
    """Raises CorruptCheckpoint naming the first file that is missing or has another size."""
    for record in manifest.files:
        if Path(record.name).name != record.name:
            raise CorruptCheckpoint(f"{NAME} names a file outside of the checkpoint: {record.name}")
        try:
            size = (folder / record.name).stat().st_size
        except OSError as error:
            not_if_away(error)
            raise CorruptCheckpoint(f"{record.name}: {error.strerror}") from error
        if size != record.size:
            raise CorruptCheckpoint(f"{record.name} has {size} bytes instead of {record.size}")


def check_file(folder: Path, record: FileRecord) -> None:
    """Raises CorruptCheckpoint where the file's bytes are not those that were written."""
    try:
        found = crc32(folder / record.name)
    except OSError as error:
        not_if_away(error)
        raise CorruptCheckpoint(f"{record.name}: {error.strerror}") from error
    if found != record.crc32:
        raise CorruptCheckpoint(f"{record.name} is damaged: CRC-32 {found:08x} instead of {record.crc32:08x}")
