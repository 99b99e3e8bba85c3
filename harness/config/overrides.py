"""Overrides as they are typed: Hydra's grammar, but each value keeps its text, and the schema's type says what it means.

Hydra reads `run.name=1.10` as the number 1.1 and `run.name=2026_11_27` as 20261127 before it looks at the key.
"""

import itertools
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from antlr4 import CommonTokenStream, InputStream, ParserRuleContext
from hydra.core.override_parser.overrides_parser import create_functions
from hydra.core.override_parser.overrides_visitor import HydraErrorListener, HydraOverrideVisitor
from hydra.core.override_parser.types import Glob, Override, OverrideType, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

from harness.config.errors import ConfigError
from harness.config.keys import KEYWORD_ALIASES, shown, type_of
from harness.config.names import NAME

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
"""The repository's config groups."""

MAX_SWEEP = 1000
"""Runs of one sweep; more are a slip of the pen."""

PLAIN = re.compile(r"""(?!\s)[^'"\[\]{}(),\\\x00-\x1f\x7f]+(?<!\s)""")
"""Text that can only mean itself, whatever Hydra's grammar makes of it: `~/runs`, `a=b`, `größe`, `#1`."""

KEY = re.compile(r"(\+{0,2})([A-Za-z_][\w.-]*)=(.*)", re.DOTALL)


class _Int(int):
    """A number that remembers how it was typed: functions such as sort() need the number, keys the text."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Float(float):
    """See `_Int`."""

    text: str

    def __str__(self) -> str:
        return self.text


class _Visitor(HydraOverrideVisitor):
    """Hydra's, but numbers remember their text and booleans are text."""

    def _createPrimitive(self, ctx: ParserRuleContext) -> Any:
        value = super()._createPrimitive(ctx)
        if isinstance(value, bool):
            return ctx.getText().strip()
        if isinstance(value, int | float):
            number = _Int(value) if isinstance(value, int) else _Float(value)
            number.text = ctx.getText().strip()
            return number
        return value


def parse(overrides: list[str]) -> list[Override]:
    """Each override, parsed; `value_of` gives its value. Raises ConfigError that lists all that can't be read."""
    parsed, problems = [], []
    for text in overrides:
        try:
            override = _parse_one(_unalias(text))
            override.input_line = text
            parsed.append(override)
        except (HydraException, ValueError, ArithmeticError, RecursionError) as error:
            problems.append(_not_readable(text, error))
    if problems:
        raise ConfigError(problems)
    return parsed


def value_of(override: Override) -> Any:
    """The value with every number as text, None for null; of a `~key=value`, as a number."""
    value = override.value()
    return value if override.type is OverrideType.DEL else _text(value)


def typed_text(override: Override) -> str:
    """The value as a person reads it: `1e-4`, `a/hf`, `[0.9,0.95]`."""
    value = value_of(override)
    return value if isinstance(value, str) else override.get_value_element_as_str()


def list_hint(override: Override) -> str:
    """How to write several values of a key that takes a list; empty: it takes none."""
    if typing.get_origin(type_of(override.key_or_group)) not in (list, tuple):
        return ""
    return f"; a list is written {override.key_or_group}=[{(override.input_line or '').partition('=')[2]}]"


def expand_sweep(overrides: list[str], extra_dir: Path | None = None) -> list[list[str]]:
    """One list of overrides per run: the product of all `key=a,b,c` (Hydra's sweep grammar). Raises ConfigError."""
    choices: list[list[str]] = []
    problems: list[str] = []
    for text, parsed in zip(overrides, parse(overrides), strict=True):
        if not parsed.is_sweep_override():
            choices.append([text])
            continue
        try:
            values = list(itertools.islice(_sweep_values(parsed, extra_dir), MAX_SWEEP + 1))
        except (HydraException, ValueError, ArithmeticError) as error:
            problems.append(f"{text}: {error}")
            continue
        if not values:
            problems.append(f"{text}: no value at all; give at least one")
        choices.append([f"{text.partition('=')[0]}={value}" for value in values])
    count = 1
    for values in choices:
        count *= max(1, len(values))
    if count > MAX_SWEEP and not problems:
        problems = [f"-m: the sweep has more than {MAX_SWEEP:,} runs; give fewer values"]
    if problems:
        raise ConfigError(problems)
    return [list(combination) for combination in itertools.product(*choices)]


def swept_keys(overrides: list[str]) -> list[str]:
    """Keys that differ between the runs of a sweep."""
    return [parsed.key_or_group for parsed in parse(overrides) if parsed.is_sweep_override()]


def available(group: str, extra_dir: Path | None = None) -> list[str]:
    """Names of the configs in a group such as `exp`."""
    folders = [CONF_DIR] + ([extra_dir] if extra_dir else [])
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def is_group(override: Override, extra_dir: Path | None = None) -> bool:
    """Whether it chooses a config of a group, such as `+exp=tiny` or `~schedule`."""
    group = override.key_or_group
    return bool(group) and any((folder / group).is_dir() for folder in (CONF_DIR, extra_dir) if folder)


def _parse_one(text: str) -> Override:
    listener = HydraErrorListener()
    lexer = OverrideLexer(InputStream(text))
    parser = OverrideParser(CommonTokenStream(lexer))
    for part in (lexer, parser):
        part.removeErrorListeners()
        part.addErrorListener(listener)
    if (plain := _as_plain_text(text)) is not None:
        return plain
    override: Override = _Visitor(create_functions()).visit(parser.override())
    return override


def _as_plain_text(text: str) -> Override | None:
    """`key=text` for a key that holds text, where the text can only mean itself. A run's name may hold commas."""
    match = KEY.fullmatch(text)
    if match is None or type_of(match[2]) is not str or "${" in match[3] or match[3].lower() == "null":
        return None
    if not PLAIN.fullmatch(match[3]) and not (match[2] == "run.name" and NAME.fullmatch(match[3]) and "=" in match[3]):
        return None
    types = {"": OverrideType.CHANGE, "+": OverrideType.ADD, "++": OverrideType.FORCE_ADD}
    value = QuotedString(match[3], Quote.single)
    return Override(types[match[1]], match[2], ValueType.ELEMENT, value)


def _sweep_values(override: Override, extra_dir: Path | None) -> Iterator[str]:
    """The values of a sweep, as they can be typed again. Raises HydraException, ValueError or ArithmeticError."""
    if override.value_type is ValueType.INTERVAL_SWEEP:
        raise HydraException("an interval has no list of values; write them out, or use range(START,STOP,STEP)")
    if isinstance(override._value, Glob):
        if not is_group(override, extra_dir):
            raise HydraException("glob() chooses between the configs of a group, such as +exp=glob(*)")
        return iter(override._value.filter(available(override.key_or_group, extra_dir)))
    return override.sweep_string_iterator()


def _text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(_text(key)): _text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_text(item) for item in value]
    return str(value) if isinstance(value, int | float) else value


def _not_readable(text: str, error: Exception) -> str:
    if match := re.search(r"while evaluating '.*?': (.*)", str(error), re.DOTALL):
        return f"{shown(text)}: {match[1].replace('_Int', 'int').replace('_Float', 'float').splitlines()[0]}"
    return f"{shown(text) or repr('')}: not an override; write key=value, +exp=NAME or ~key (quote values with spaces: 'key=\"a b\"')"


def _unalias(override: str) -> str:
    key, sign, value = override.partition("=")
    bare = key.lstrip("+")
    if key.startswith(("cluster.sbatch.", "model.rope_scaling")):
        key = f"++{key}"  # any flag or parameter is welcome, also one that no config names yet
    return key.replace(bare, KEYWORD_ALIASES[bare]) + sign + value if bare in KEYWORD_ALIASES else key + sign + value
