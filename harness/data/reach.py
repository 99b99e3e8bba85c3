"""Whether this machine can read a run's sources at all: a look at each path, which may hang and holds nobody up."""

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from harness.config.schema import SourceConfig
from harness.data.origins import is_url
from harness.data.token_files import source_key


def unreachable(sources: Mapping[str, SourceConfig], seconds: float) -> tuple[list[str], list[str]]:
    """(what can't be read, what has not answered within `seconds`), a sentence each, for paths on mounted file systems.

    Reads the first bytes of one token file of each source. A read that hangs stays behind in a daemon thread.
    """
    answers: dict[str, str] = {}
    wanted = {name: source.path for name, source in sources.items() if source.path and not is_url(source.path)}
    threads = {
        name: threading.Thread(target=_look, args=(name, path, answers), name=f"reach-{name}", daemon=True)
        for name, path in wanted.items()
    }
    deadline = time.monotonic() + seconds
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(0.0, deadline - time.monotonic()))
    silent = [name for name in wanted if name not in answers]
    return (
        [answer for answer in answers.values() if answer],
        [f"{source_key(name, wanted[name])} has not answered within {seconds:.0f} s" for name in silent],
    )


def _look(name: str, path: str, answers: dict[str, str]) -> None:
    try:
        place = Path(path).expanduser()
        file = place
        if place.is_dir():
            with os.scandir(place) as entries:
                file = next((Path(entry.path) for entry in entries if entry.name.endswith(".ds")), place / "*.ds")
        with open(file, "rb", buffering=0) as handle:
            handle.read(1)
        answers[name] = ""
    except OSError as error:
        answers[name] = f"{source_key(name, path)} cannot be read: {error.strerror or error}"
