"""The keys that the schema has, their types, and what to say about one that it has not."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any

from omegaconf import DictConfig

from harness.config.schema import UNSET, RootConfig

SCHEMA_FILE = "harness/config/schema.py"

MAX_SHOWN = 100
"""Characters of a value that a message repeats."""

KEYWORD_ALIASES = {"checkpoint.async": "checkpoint.async_save"}
"""`async` is a word of the language and can't be a field's name, but it is what users type."""


def type_of(key: str) -> Any:
    """The declared type of a dotted key (`data.sources.web.path`: str), without its `| None`; None: no such key."""
    return _without_none(_declared(key))


def _declared(key: str) -> Any:
    kind: Any = RootConfig
    for part in KEYWORD_ALIASES.get(key, key).split(".") if key else ():
        kind = _without_none(kind)
        if dataclasses.is_dataclass(kind):
            kind = _fields(typing.cast(type, kind)).get(part)
        elif typing.get_origin(kind) is dict:
            kind = typing.get_args(kind)[1]
        elif typing.get_origin(kind) is list and part.isdecimal():
            kind = typing.get_args(kind)[0]
        else:
            return None
    return kind


def _without_none(kind: Any) -> Any:
    if not isinstance(kind, types.UnionType):
        return kind
    return next(option for option in typing.get_args(kind) if option is not type(None))


def convert(value: Any, key: str, problems: list[str]) -> Any:
    """`value`, whose numbers and booleans are text, as what the schema says `key` holds. Notes what does not fit."""
    return _convert(value, _declared(key), key, problems)


def _convert(value: Any, declared: Any, key: str, problems: list[str]) -> Any:
    kind = _without_none(declared)
    if kind is None or value == UNSET or (isinstance(value, str) and "${" in value):
        return value  # an unknown key, a missing value or an interpolation: known once all is composed
    if value is None and kind is not declared:
        return None
    if kind is Any:
        return _whatever(value)
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind) is dict:
        if isinstance(value, dict):
            return {name: _convert_entry(name, item, kind, key, problems) for name, item in value.items()}
    elif typing.get_origin(kind) in (list, tuple):
        if isinstance(value, list):
            element = typing.get_args(kind)[0]
            return [_convert(item, element, f"{key}[{number}]", problems) for number, item in enumerate(value)]
    elif value is not None and not isinstance(value, list | dict):
        try:
            return _scalar(value, kind)
        except (ValueError, KeyError):
            pass
    problems.append(f"{key}={shown(value)}: {_expected(key, kind, value)}")
    return value


def _convert_entry(name: Any, value: Any, kind: Any, key: str, problems: list[str]) -> Any:
    whole = f"{key}.{name}".lstrip(".")
    if typing.get_origin(kind) is dict:
        return _convert(value, typing.get_args(kind)[1], whole, problems)
    if name not in _fields(kind):
        problems.append(no_such_key(whole))
    return _convert(value, _fields(kind).get(name), whole, problems)


def _whatever(value: Any) -> Any:
    """Text that stands for a number, true or false as that; the rest as it is."""
    if isinstance(value, list):
        return [_whatever(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return {"true": True, "false": False}.get(value.lower(), value)


def _scalar(value: Any, kind: Any) -> Any:
    """Raises ValueError or KeyError where it is none."""
    text = str(value)
    if kind is bool:
        return _BOOLEANS[text.lower()]
    if issubclass(kind, Enum):
        return next((member.name for member in kind if member.value == text), None) or kind[text].name
    return kind(text)


_BOOLEANS = {word: True for word in ("true", "yes", "y", "on", "1")} | {word: False for word in ("false", "no", "n", "off", "0")}  # fmt: skip


def _expected(key: str, kind: Any, value: Any) -> str:
    if typing.get_origin(kind) in (list, tuple):
        scalar = value is not None and not isinstance(value, dict)
        return f"expected a list{f'; write {key}=[{value}]' if scalar else ''}"
    if typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind):
        return "expected keys with values"
    if issubclass(kind, Enum):
        return f"expected one of {', '.join(member.value for member in kind)}"
    if value is None and kind is str:
        return "expected text; quote the word null if it is meant"
    return {str: "expected text", int: "expected a whole number", float: "expected a number", bool: "expected true or false"}[kind]  # fmt: skip


def shown(value: Any) -> str:
    """A value as it stands in a message: short, however long it is."""
    text = "null" if value is None else f"{value}"
    text = text.replace("'", "") if isinstance(value, list | dict) else text
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def no_such_key(key: str, value: str | None = None) -> str:
    """Names the keys that were probably meant."""
    close = difflib.get_close_matches(key, known_keys(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"all keys: {SCHEMA_FILE}"
    return f"{key}{'' if value is None else f'={value}'}: no such key; {hint}"


def unknown_keys(node: DictConfig) -> Iterator[str]:
    """Keys of a composed config that the schema has not: `+key=value` adds any."""
    yield from _unknown(node, RootConfig, "")


def _unknown(node: DictConfig, kind: Any, prefix: str) -> Iterator[str]:
    declared = _fields(kind)
    for name in node:
        key = f"{prefix}{name!s}"
        if name not in declared:
            yield key
            continue
        child = node._get_node(name)
        if isinstance(child, DictConfig) and dataclasses.is_dataclass(declared[str(name)]) and not child._is_none():
            yield from _unknown(child, declared[str(name)], f"{key}.")


@cache
def known_keys() -> list[str]:
    """Every dotted key, in the schema's order."""

    def walk(kind: Any, prefix: str) -> Iterator[str]:
        for name, declared in _fields(kind).items():
            yield prefix + name
            if dataclasses.is_dataclass(declared):
                yield from walk(declared, f"{prefix}{name}.")

    return [*walk(RootConfig, ""), *KEYWORD_ALIASES]


@cache
def _fields(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
