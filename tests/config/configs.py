"""Configs for tests: composing one takes a third of a second, so each experiment is composed once and changed from there."""

from functools import cache

from omegaconf import OmegaConf

from harness.config.compose import compose
from harness.config.schema import RootConfig


def config(experiment: str, *overrides: str) -> RootConfig:
    """The experiment with `key=value` on top (keys, not groups), as composing would give it."""
    changed = OmegaConf.merge(_composed(experiment), OmegaConf.from_dotlist([text.lstrip("+") for text in overrides]))
    made = OmegaConf.to_object(changed)
    assert isinstance(made, RootConfig)
    return made


@cache
def _composed(experiment: str) -> RootConfig:
    return compose([f"+exp={experiment}"])
