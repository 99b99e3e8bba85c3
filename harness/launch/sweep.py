"""The configs that a command line asks for: one, or with `-m` one for each combination of the values of a sweep."""

from collections import Counter
from pathlib import Path

from harness.config.compose import compose
from harness.config.errors import ConfigError
from harness.config.names import name_problem, sweep_name
from harness.config.overrides import expand_sweep, list_hint, parse, typed_text
from harness.config.schema import RootConfig
from harness.model.composed import with_starting_model


def composed(overrides: list[str], config_dir: Path | None, multirun: bool) -> list[RootConfig]:
    """One config per run, each with a name of its own. Raises ConfigError with all that is wrong with any of them."""
    swept = [o for o in parse(overrides) if o.is_sweep_override()]
    combinations = expand_sweep(overrides, config_dir)
    if len(combinations) > 1 and not multirun:
        raise ConfigError(
            [f"{o.key_or_group}: several values make a sweep, one job each; add -m if that is what you want{list_hint(o)}"
             for o in swept]
        )  # fmt: skip
    configs: list[RootConfig] = []
    problems: list[str] = []
    for combination in combinations:
        try:
            configs.append(compose(combination, config_dir))
        except ConfigError as error:
            problems += error.problems
    if not problems and multirun:
        _name(configs, combinations, [o.key_or_group for o in swept])
        problems = _problems_with_names(configs)
    for config, combination in zip(configs, combinations, strict=True) if not problems else ():
        try:
            with_starting_model(config, combination, config_dir)
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(list(dict.fromkeys(problems)))
    return configs


def _name(configs: list[RootConfig], combinations: list[list[str]], keys: list[str]) -> None:
    """Give each run of a sweep a name of its own, `ablation_1b,lr=1e-4`, unless the names themselves are swept over."""
    if "run.name" in keys:
        return
    for config, combination in zip(configs, combinations, strict=True):
        values = {o.key_or_group: typed_text(o) for o in parse(combination) if o.key_or_group in keys}
        config.run.name = sweep_name(config.run.name, values)


def _problems_with_names(configs: list[RootConfig]) -> list[str]:
    problems = [problem for config in configs if (problem := name_problem(config.run.name))]
    counts = Counter(config.run.name for config in configs)
    return problems + [
        f"run.name={name}: {count} runs of the sweep would have this name; give values that differ, or fewer"
        for name, count in counts.items()
        if count > 1
    ]
