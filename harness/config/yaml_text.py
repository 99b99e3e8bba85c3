"""YAML whose plain scalars stay the text that was typed: the schema's type of each key decides what the text means.

YAML 1.1 reads `time: 12:00:00` as 43200, `account: 012345` as 5349, `name: 1.10` as 1.1, `mode: off` as false and
`comment: 2026_11_27` as 20261127. OmegaConf converts text to the type of the key by itself, so nothing needs to guess.
"""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml


class YamlError(Exception):
    """A file that is not YAML, or no mapping; the message names file and place."""


class _TextLoader(yaml.SafeLoader):
    """Plain scalars are text; only null, infinities and merge keys keep a meaning of their own."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != "<<" and key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} is there twice", key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


_TextLoader.yaml_implicit_resolvers = {}
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""])
_TextLoader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"^<<$"), ["<"])
_TextLoader.add_implicit_resolver(  # what OmegaConf writes for them, and float() does not read
    "tag:yaml.org,2002:float", re.compile(r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"), ["-", "+", "."]
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in `path`; empty for an empty file. Raises YamlError, and OSError where it can't be read."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_TextLoader)
    except UnicodeDecodeError as error:
        raise YamlError(f"{path}: not a text file: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise YamlError(f"{path}: not YAML: {_sentence(error)}") from error
    except RecursionError as error:
        raise YamlError(f"{path}: nested too deeply") from error
    if not isinstance(content, dict | None):
        raise YamlError(f"{path}: expected keys with values, got {type(content).__name__}")
    return {str(key): value for key, value in (content or {}).items()}


def _sentence(error: yaml.YAMLError) -> str:
    """What is wrong, and in which line."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return " ".join(str(error).split())
    mark = error.problem_mark
    return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
