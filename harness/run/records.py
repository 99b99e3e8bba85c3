"""What is read from a run's files, checked: people edit and copy them, and a copy may be cut short."""

import math
import os
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from harness.run.files import DamagedFile, read_json

Kind = TypeVar("Kind")
MOST_SHOWN = 60
LATEST_TIME = 1e11
"""Unix seconds; a time beyond that is none."""


def read_record(path: Path, kind: type[Kind]) -> Kind | None:
    """The JSON of `path` as `kind` (a dataclass, `dict[str, str]`, ...); None: no such file.

    Raises DamagedFile if it is something else, OSError if it can't be read.
    """
    value = read_json(path)
    if value is None:
        if path.exists():
            raise DamagedFile(path, "holds null")
        if path.is_symlink():
            raise DamagedFile(path, f"a link to {os.readlink(path)}, which does not exist")
        return None
    try:
        asked: Any = kind
        record: Kind = _adapter(asked).validate_python(value)
        return record
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        got = repr(first["input"])
        got = got if len(got) <= MOST_SHOWN else f"{got[:MOST_SHOWN]}..."
        raise DamagedFile(path, f"{f'{place}: ' if place else ''}{first['msg'].lower()}, got {got}") from error


def read_sound(path: Path, kind: type[Kind]) -> Kind | None:
    """`read_record`, and None for a file that is damaged or can't be read."""
    try:
        return read_record(path, kind)
    except (DamagedFile, OSError):
        return None


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def is_event(line: dict[str, Any]) -> bool:
    """Whether a line of events.jsonl is one that every reader can use."""
    return (
        isinstance(line.get("event"), str)
        and is_time(line.get("time"))
        and all(_is_count_or_none(line.get(key)) for key in ("step", "attempt"))
        and all(isinstance(line.get(key, ""), str | None) for key in ("reason", "why", "node"))
    )


def is_step(line: dict[str, Any]) -> bool:
    """Whether a line of metrics.jsonl is one that every reader can use; what it leaves out is not looked at."""
    numbers = ("loss", "grad_norm", "lr", "step_seconds", "tokens_per_second")
    return (
        _is_count(line.get("step"))
        and is_time(line.get("time", 0))
        and _is_count_or_none(line.get("tokens"))
        and all(line.get(key) is None or _is_number(line[key]) for key in numbers)
    )


def is_validation(line: dict[str, Any]) -> bool:
    """Whether a line of validation.jsonl is one that every reader can use."""
    numbers = ("loss", "seconds")
    return (
        _is_count(line.get("step"))
        and is_time(line.get("time", 0))
        and "loss" in line
        and all(line.get(key) is None or _is_number(line[key]) for key in numbers)
    )


def is_time(value: Any) -> bool:
    """Whether it is a time in Unix seconds."""
    return _is_number(value) and 0 <= value < LATEST_TIME


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _is_count_or_none(value: Any) -> bool:
    return value is None or _is_count(value)
