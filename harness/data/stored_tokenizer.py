"""The tokenizer that lies beside token files in an object store, brought to this machine: checks read its vocabulary."""

import os
import threading
import time
from pathlib import Path

from harness.data.errors import DataError
from harness.data.origins import StoreFolder, join
from harness.data.stage_copy import Busy, Copier, Damaged, NoRoom, Original, RateLimit, Room
from harness.data.stage_paths import staged_folder
from harness.data.stage_plan import TOKENIZER_FILES, StageFile

POLL_SECONDS = 0.1


def fetch(store: StoreFolder, tokenizer: str, key: str) -> Path | None:
    """A folder on this machine, in the user's cache, that `tokenizer` is in as it is in `store`; None: it is not there.

    What the cache has already is not read again unless it has changed. Raises DataError, which names the source by `key`.
    """
    if tokenizer.startswith(("/", "~")) or ".." in tokenizer.split("/"):
        return None
    inside = tokenizer.rpartition("/")[0] if tokenizer.endswith(".json") else tokenizer.rstrip("/")
    files = store.inside(inside) if inside else store.files
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "harness" / "tokenizers"
    copies = staged_folder(cache, store.url)
    wanted = [
        StageFile(key, join(store.url, name), copies, name, file.size, file.modified_ns, None)
        for file in files.values()
        if file.name in TOKENIZER_FILES
        for name in ([f"{inside}/{file.name}"] if inside else [file.name])
    ]
    if not any(file.copy.name == "tokenizer.json" for file in wanted):
        return None
    for file in wanted:
        try:
            _copy(file, cache)
        except NoRoom:
            raise DataError(
                f"{key}: no room for its tokenizer in {cache}; set XDG_CACHE_HOME to another folder"
            ) from None
        except (OSError, Damaged) as error:
            raise DataError(f"{key}: {file.origin} cannot be brought to {cache}: {error}") from None
    return copies


def _copy(file: StageFile, cache: Path) -> None:
    """Raises NoRoom, Damaged or OSError."""
    stop = threading.Event()
    copier = Copier(Room(cache, 0), RateLimit(None, stop), stop, lambda size: None)
    while True:
        try:
            copier.copy(file, [Original()])
            return
        except Busy:  # another launch brings it at this moment
            time.sleep(POLL_SECONDS)
