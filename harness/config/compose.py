"""Composes the typed config from conf/ and the command line's overrides; says all that is wrong with them at once."""

import dataclasses
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from harness.config.errors import ConfigError
from harness.config.keys import convert, no_such_key, shown, type_of, unknown_keys
from harness.config.names import name_problem
from harness.config.overrides import CONF_DIR, available, is_group, list_hint, parse, value_of
from harness.config.paths import path_problems
from harness.config.schema import UNSET, RootConfig
from harness.config.yaml_text import YamlError, read_yaml

TOKEN_SOURCES = ("data.sources.", "data.validation.")
"""Where users name token files of their own."""


def compose(overrides: list[str], extra_dir: Path | None = None) -> RootConfig:
    """The config for these overrides (Hydra's grammar: `+exp=tiny train.steps=10`).

    Groups in `extra_dir` (a site's or a team's own conf folder) are found beside those of the repository.
    Raises ConfigError with every problem.
    """
    if not CONF_DIR.is_dir():
        raise ConfigError([f"{CONF_DIR} is missing: install with `pip install -e .` from a clone of the repository"])
    if extra_dir and not extra_dir.is_dir():
        raise ConfigError([f"--config-dir {extra_dir}: no such folder"])
    parsed = parse(overrides)
    swept = [f"{o.input_line}: several values; give one (sweeps are for harness.launch -m){list_hint(o)}"
             for o in parsed if o.is_sweep_override()]  # fmt: skip
    if swept:
        raise ConfigError(swept)
    node, problems = _compose_groups([o for o in parsed if is_group(o, extra_dir)], extra_dir)
    for override in parsed:
        if not is_group(override, extra_dir):
            problems += _apply(node, override)
    problems += [no_such_key(key) for key in unknown_keys(node)]
    if problems:
        raise ConfigError(problems)
    return _to_object(node)


def typed_model_keys(overrides: list[str], extra_dir: Path | None = None) -> set[str]:
    """Keys of `model` that the user has set, where `compose` takes these overrides.

    They are set on the command line, in an experiment or another file outside of the group `model` that names them, or in a
    group that is chosen on the command line (`model=NAME`). Defaults of the schema are not, nor what stands in a group that
    an experiment or the root config chooses.
    """
    parsed = parse(overrides)
    groups = [override for override in parsed if is_group(override, extra_dir)]
    if not any(override.key_or_group == "model" for override in groups):
        groups += parse(["~model"])
    bare = OmegaConf.structured(RootConfig)
    for key in bare.model:
        bare.model[key] = UNSET
    node = _load(groups, extra_dir, bare)
    for override in parsed:
        if not is_group(override, extra_dir):
            _apply(node, override)
    return {str(key) for key in node.model if not OmegaConf.is_missing(node.model, key)}


class _TypedSource(FileConfigSource):
    """Config files whose values are what was typed, see `yaml_text`."""

    @staticmethod
    def scheme() -> str:
        return "typed"

    def load_config(self, config_path: str) -> ConfigResult:
        path = Path(self.path) / self._normalize_file_name(config_path)
        try:
            with path.open(encoding="utf-8", errors="replace") as f:
                header = self._get_header_dict(f.read(512))
            config = _typed(read_yaml(path), config_path, header.get("package"), path)
        except (YamlError, OSError) as error:
            raise HydraException(str(error)) from error
        return ConfigResult(config=config, path=f"typed://{self.path}", provider=self.provider, header=header)


def _typed(values: dict[str, Any], config_path: str, package: str | None, path: Path) -> DictConfig:
    """What a config file says, as the schema has it. Raises YamlError that lists all that does not fit."""
    group = config_path.rpartition("/")[0].replace("/", ".")
    place = group if package is None else package.replace("_group_", group).replace("_global_", "")
    if type_of(place) is str:
        raise YamlError(f"{path}: its first line must be `# @package _global_`, as in conf/{group}")
    defaults = {"defaults": values.pop("defaults")} if "defaults" in values else {}
    problems: list[str] = []
    converted = convert(values, place, problems)
    if problems:
        raise YamlError("; ".join(f"{path}: {problem}" for problem in problems))
    return OmegaConf.create({**defaults, **converted})


def _compose_groups(chosen: list[Override], extra_dir: Path | None) -> tuple[DictConfig, list[str]]:
    """The config of these groups, and what is wrong with them: those are left out."""
    try:
        return _load(chosen, extra_dir), []
    except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
        whole = error
    # Hydra stops at the first problem: add them one by one
    good: list[Override] = []
    problems = []
    for override in chosen:
        try:
            _load([*good, override], extra_dir)
        except (HydraException, OmegaConfBaseException, RecursionError, ValueError) as error:
            problems.append(_about_group(override, error, extra_dir))
        else:
            good.append(override)
    if not problems:  # conf/config.yaml itself
        raise ConfigError([_sentence(whole)]) from whole
    return _load(good, extra_dir), problems


def _load(chosen: list[Override], extra_dir: Path | None, schema: Any = RootConfig) -> DictConfig:
    Plugins.instance().register(_TypedSource)
    ConfigStore.instance().store(name="schema", node=schema)
    search = ConfigSearchPathImpl()
    search.append("hydra", "pkg://hydra.conf")
    search.append("main", f"typed://{CONF_DIR}")
    if extra_dir:
        search.append("--config-dir", f"typed://{extra_dir.resolve()}")
    search.append("schema", "structured://")
    loader = ConfigLoaderImpl(search)
    node = loader.load_configuration("config", [_as_typed(o) for o in chosen], RunMode.RUN, from_shell=False)
    with open_dict(node):
        del node["hydra"]
    return node


def _as_typed(override: Override) -> str:
    """A group's override with its value quoted, since configs may be called `2026_11` or `1.10`."""
    value = value_of(override)
    key = override.get_key_element()
    if isinstance(value, str) and value:
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return override.input_line or key


def _about_group(override: Override, error: Exception, extra_dir: Path | None) -> str:
    group, value = override.key_or_group, value_of(override)
    if override.package is not None:
        return f"{(override.input_line or group).lstrip('+')}: a group has one place; write {group}={value}"
    choices = available(group, extra_dir)
    if not isinstance(value, list | dict) and value not in choices and choices and not override.is_delete():
        return f"{group}={shown(value)}: choose one of {', '.join(choices)}"
    return f"{(override.input_line or group).lstrip('+')}: {_sentence(error)}"


def _apply(node: DictConfig, override: Override) -> list[str]:
    """Set one value; what is wrong with it, if anything."""
    key, value, text = override.key_or_group, value_of(override), shown((override.input_line or "").lstrip("+"))
    if not key or override.package is not None:
        return [f"{text or repr('')}: not an override; write key=value, +exp=NAME or ~key"]
    if type_of(key) is None and not (override.is_add() or override.is_force_add()):
        return [no_such_key(key, None if override.is_delete() else text.partition("=")[2])]
    if _unset(value):
        return [f"{text}: ??? stands for a value that is missing; give one"]
    if override.is_delete() and dataclasses.is_dataclass(type_of(key.rpartition(".")[0])):
        return [f"{text}: can't be removed, only changed; remove what you have named yourself, as ~data.sources.NAME"]
    problems: list[str] = []
    override._value = value if override.is_delete() else convert(value, key, problems)
    if problems:
        return problems
    try:
        if key.startswith(TOKEN_SOURCES) and not override.is_delete():
            # a new source is a new object, which Hydra's `+` can't make inside a typed dict; a merge can
            nested: Any = override._value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            with open_dict(node):
                node.merge_with(OmegaConf.create(nested))
        else:
            ConfigLoaderImpl._apply_overrides_to_config([override], node)
    except (HydraException, OmegaConfBaseException, ValueError, TypeError, AttributeError, IndexError) as error:
        if "An item is already at" in str(error):
            return [f"{text}: has a value already; leave out the + to change it"]
        return [f"{text}: {_sentence(error)}"]
    return []


def _unset(value: Any) -> bool:
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return value == UNSET or any(_unset(item) for item in items)


def _root(error: BaseException) -> BaseException:
    while isinstance(error.__cause__, HydraException | OmegaConfBaseException | YamlError):
        error = error.__cause__
    return error


def _sentence(error: BaseException) -> str:
    """The first line of Hydra's or OmegaConf's message, which names value and type, or the missing file; and the key."""
    root = _root(error)
    if isinstance(root, RecursionError):
        return "refers to itself"
    lines = [line.strip() for line in str(root).splitlines() if line.strip()]
    said = lines[0] if lines else type(root).__name__
    file = next((line for line in str(error).splitlines() if line.startswith("In '")), "").partition(":")[0]
    key = getattr(root, "full_key", None)
    return ": ".join(filter(None, [file, key if isinstance(key, str) else None, said]))


def _to_object(node: DictConfig) -> RootConfig:
    """Checks that nothing is left unset, except data paths, which only matter when the run starts."""
    for source in (*node.data.sources.values(), *node.data.validation.values()):
        if OmegaConf.is_missing(source, "path"):
            source.path = ""
    try:
        missing = sorted(OmegaConf.missing_keys(node))
    except (OmegaConfBaseException, RecursionError) as error:  # an interpolation that leads nowhere
        raise ConfigError([_sentence(error)]) from error
    if missing:
        experiments = "|".join(available("exp"))
        raise ConfigError(
            [f"{key} is not set: give {key}=VALUE, or choose an experiment with +exp={experiments}" for key in missing]
        )
    try:
        config = OmegaConf.to_object(node)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        raise ConfigError([_sentence(error)]) from error
    assert isinstance(config, RootConfig)
    if not config.run.name or config.run.name == UNSET:
        raise ConfigError(["run.name is empty: choose an experiment with "
                           f"+exp={'|'.join(available('exp'))}, or give run.name=NAME"])  # fmt: skip
    problems = [problem for problem in (name_problem(config.run.name),) if problem] + path_problems(config)
    if problems:
        raise ConfigError(problems)
    return config
