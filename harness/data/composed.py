"""The config that a command of `harness.data` was given by overrides, as far as it bears on data."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.data.errors import DataError

if TYPE_CHECKING:
    from harness.config.schema import RootConfig


def composed(overrides: list[str], config_dir: Path | None) -> "RootConfig":
    """The config. Raises DataError with everything that is wrong with it, but for what only a launch needs."""
    from harness.config.check import check
    from harness.config.errors import ConfigError
    from harness.model.composed import composed_run

    try:
        config = composed_run(overrides, config_dir)
    except ConfigError as error:
        raise DataError(str(error)) from None
    if problems := [problem for problem in check(config) if problem.startswith("data.")]:
        raise DataError("\n".join(problems))
    return config
