"""The config of a run, as its overrides compose it, with the model that it starts from."""

from pathlib import Path

from harness.config.compose import compose, typed_model_keys
from harness.config.errors import ConfigError
from harness.config.schema import ModelConfig, RootConfig
from harness.run.folder import RunFolder, RunFolderError


def composed_run(overrides: list[str], extra_dir: Path | None = None) -> RootConfig:
    """What `compose` makes of the overrides, `with_starting_model`. Raises ConfigError with every problem."""
    return with_starting_model(compose(overrides, extra_dir), overrides, extra_dir)


def with_starting_model(config: RootConfig, overrides: list[str], extra_dir: Path | None = None) -> RootConfig:
    """`config`, which `compose` made of the overrides, whose keys of `model` that they leave open are those of the folder
    `model.init_from`. Changes it in place.

    A run that has a checkpoint keeps the model that it was launched with: the folder is not looked at any more. A folder
    that is missing is left to the launch to refuse, so that a dry run elsewhere can show all else.
    Raises ConfigError with every problem.
    """
    began = _begun_from_folder(config)
    if began is not None:
        typed = typed_model_keys(overrides, extra_dir)
        for key, value in vars(began).items():
            if key not in typed:
                setattr(config.model, key, value)
    elif config.model.init_from is not None and Path(config.model.init_from).expanduser().exists():
        from harness.model.starting_model import FolderConfigError, taken_from_folder

        try:
            config.model = taken_from_folder(config.model, typed_model_keys(overrides, extra_dir))
        except FolderConfigError as error:
            raise ConfigError(error.problems) from error
    return config


def _begun_from_folder(config: RootConfig) -> ModelConfig | None:
    """The model of the run of this name, if it began from a folder and has a checkpoint."""
    run = RunFolder(Path(config.runs_dir) / config.run.name)
    if not run.has_checkpoints():
        return None
    try:
        model = run.load_config().model
    except RunFolderError:
        return None  # the launch says what is wrong with the folder
    return model if model.init_from is not None else None
