"""What every command that composes a config takes on its command line."""

import argparse
from pathlib import Path


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add Hydra's overrides as `overrides` and the folder for `compose` as `config_dir`."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="+exp=NAME, GROUP=NAME or KEY=VALUE")
    parser.add_argument("--config-dir", type=Path, help="another folder with config groups, searched beside conf/")
