"""Composes the typed config from conf/ and the command line's overrides; says all that is wrong with them at once."""

import difflib
import itertools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.config.schema import UNSET, RootConfig

CONF_DIR = Path(__file__).resolve().parents[2] / "conf"
"""The repository's config groups."""

SCHEMA_FILE = "harness/config/schema.py"

TOKEN_SOURCES = ("data.sources.", "data.validation.")
"""Where users name token files of their own."""

KEYWORD_ALIASES = {"checkpoint.async": "checkpoint.async_save"}
"""`async` is a word of the language and can't be a field's name, but it is what users type."""


class ConfigError(Exception):
    """The config can't be composed. `problems` holds one sentence each: key, value and what would be right."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


def compose(overrides: list[str], extra_dir: Path | None = None) -> RootConfig:
    """The config for these overrides (Hydra's grammar: `+exp=tiny train.steps=10`).

    Groups in `extra_dir` (a site's or a team's own conf folder) are found beside those of the repository.
    Raises ConfigError with every problem.
    """
    overrides = [_unalias(override) for override in overrides]
    with _hydra(extra_dir):
        node = _Composer(extra_dir).compose(overrides)
    return _to_object(node)


def expand_sweep(overrides: list[str]) -> list[list[str]]:
    """One list of overrides per run: the product of all `key=a,b,c` (Hydra's sweep grammar). Raises ConfigError."""
    choices: list[list[str]] = []
    for text, parsed in zip(overrides, _parse(overrides), strict=True):
        if parsed.is_sweep_override():
            key = text.split("=", 1)[0]
            choices.append([f"{key}={value}" for value in parsed.sweep_string_iterator()])
        else:
            choices.append([text])
    return [list(combination) for combination in itertools.product(*choices)]


def swept_keys(overrides: list[str]) -> list[str]:
    """Keys that differ between the runs of a sweep."""
    return [text.split("=", 1)[0].lstrip("+~") for text, parsed in zip(overrides, _parse(overrides), strict=True)
            if parsed.is_sweep_override()]  # fmt: skip


def available(group: str, extra_dir: Path | None = None) -> list[str]:
    """Names of the configs in a group such as `exp`."""
    folders = [CONF_DIR] + ([extra_dir] if extra_dir else [])
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


@contextmanager
def _hydra(extra_dir: Path | None) -> Iterator[None]:
    if not CONF_DIR.is_dir():
        raise ConfigError([f"{CONF_DIR} is missing: install with `pip install -e .` from a clone of the repository"])
    if extra_dir and not extra_dir.is_dir():
        raise ConfigError([f"--config-dir {extra_dir}: no such folder"])
    ConfigStore.instance().store(name="schema", node=RootConfig)
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        yield


@dataclass(frozen=True)
class _Composer:
    """One composition, and what is wrong with it."""

    extra_dir: Path | None

    def compose(self, overrides: list[str]) -> DictConfig:
        _parse(overrides)
        try:
            return self._once(overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(self._explain_each(overrides) or [_sentence(error)]) from error

    def _once(self, overrides: list[str]) -> DictConfig:
        search = [f"hydra.searchpath=[file://{self.extra_dir.resolve()}]"] if self.extra_dir else []
        # a new source is a new object, which Hydra's `+` can't make inside a typed dict; a merge can
        named = tuple(f"+{prefix}" for prefix in TOKEN_SOURCES)
        sources = [override.lstrip("+") for override in overrides if override.startswith(named)]
        rest = [override for override in overrides if not override.startswith(named)]
        node = hydra_compose(config_name="config", overrides=search + rest)
        with open_dict(node):
            node.merge_with(OmegaConf.from_dotlist(sources))
        unknown = list(_unknown_keys(node, OmegaConf.structured(RootConfig)))
        if unknown:
            raise ConfigError([_no_such_key(key) for key in unknown])
        return node

    def _explain_each(self, overrides: list[str]) -> list[str]:
        """Hydra stops at the first problem: apply the groups one by one, then each value alone on top of them."""
        problems: list[str] = []
        good: list[str] = []
        for override in sorted(overrides, key=lambda o: not self._is_group(o)):
            try:
                self._once([*good, override])
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(self._explain(override, error))
                continue
            except ConfigError as error:
                problems += error.problems
                continue
            if self._is_group(override):
                good.append(override)
        return problems

    def _is_group(self, override: str) -> bool:
        group = override.split("=", 1)[0].lstrip("+~").split("@")[0]
        return any((folder / group).is_dir() for folder in (CONF_DIR, self.extra_dir) if folder)

    def _explain(self, override: str, error: Exception) -> str:
        key, _, value = override.partition("=")
        key = key.lstrip("+~")
        if self._is_group(override):
            choices = available(key, self.extra_dir)
            return _sentence(error) if value in choices else f"{key}={value}: choose one of {', '.join(choices)}"
        if key not in _known_keys() and not _inside_open_dict(key):
            return _no_such_key(key, value)
        return f"{key}={value}: {_sentence(error)}"


def _no_such_key(key: str, value: str | None = None) -> str:
    close = difflib.get_close_matches(key, _known_keys(), n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}?" if close else f"all keys: {SCHEMA_FILE}"
    return f"{key}{'' if value is None else f'={value}'}: no such key; {hint}"


def _inside_open_dict(key: str) -> bool:
    return key.startswith(("cluster.sbatch.", "data.stages.", *TOKEN_SOURCES))


def _known_keys() -> list[str]:
    def walk(node: DictConfig, prefix: str) -> Iterator[str]:
        for name in node:
            yield prefix + str(name)
            child = node._get_node(name)
            if isinstance(child, DictConfig) and not child._is_none() and not child._is_missing():
                yield from walk(child, f"{prefix}{name!s}.")

    return [*walk(OmegaConf.structured(RootConfig), ""), *KEYWORD_ALIASES]


def _sentence(error: Exception) -> str:
    """The first line of Hydra's or OmegaConf's message, which names value and type, or the missing file."""
    cause: BaseException = error
    while isinstance(cause.__cause__, HydraException | OmegaConfBaseException):
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else type(cause).__name__


def _parse(overrides: list[str]) -> list[Override]:
    parser, parsed, problems = OverridesParser.create(), [], []
    for text in overrides:
        try:
            parsed.append(parser.parse_override(text))
        except HydraException:
            problems.append(
                f"{text}: not an override; write key=value, +exp=NAME or ~key (quote values with spaces: 'key=\"a b\"')"
            )
    if problems:
        raise ConfigError(problems)
    return parsed


def _unalias(override: str) -> str:
    key, sign, value = override.partition("=")
    bare = key.lstrip("+")
    if key.startswith("cluster.sbatch."):
        key = f"++{key}"  # any flag is welcome, also one that no config names yet
    return key.replace(bare, KEYWORD_ALIASES[bare]) + sign + value if bare in KEYWORD_ALIASES else key + sign + value


def _unknown_keys(node: DictConfig, schema: DictConfig, prefix: str = "") -> Iterator[str]:
    """Keys that `+key=value` has added although the schema has none of that name."""
    for name in node:
        key = prefix + str(name)
        if name not in list(schema.keys()):
            yield key
        elif isinstance(node._get_node(name), DictConfig) and not _inside_open_dict(f"{key}."):
            yield from _unknown_keys(node[name], schema[name], f"{key}.")


def _to_object(node: DictConfig) -> RootConfig:
    """Checks that nothing is left unset, except data paths, which only matter when the run starts."""
    for source in (*node.data.sources.values(), *node.data.validation.values()):
        if OmegaConf.is_missing(source, "path"):
            source.path = ""
    missing = sorted(_missing_keys(node))
    if missing:
        experiments = "|".join(available("exp"))
        raise ConfigError(
            [f"{key} is not set: give {key}=VALUE, or choose an experiment with +exp={experiments}" for key in missing]
        )
    try:
        config = OmegaConf.to_object(node)
    except OmegaConfBaseException as error:
        raise ConfigError([_sentence(error)]) from error
    assert isinstance(config, RootConfig)
    if not config.run.name or config.run.name == UNSET:
        raise ConfigError(["run.name is empty: choose an experiment with "
                           f"+exp={'|'.join(available('exp'))}, or give run.name=NAME"])  # fmt: skip
    if not re.fullmatch(r"[A-Za-z0-9._=,-]+", config.run.name) or config.run.name.startswith("."):
        raise ConfigError(
            [f"run.name={config.run.name}: use letters, digits and . _ - = , only, not starting with a dot"]
        )
    return config


def _missing_keys(node: DictConfig | ListConfig, prefix: str = "") -> Iterator[str]:
    for key in OmegaConf.missing_keys(node):
        yield prefix + key
