"""From a run folder to an exit code."""

import argparse
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch.distributed as dist

from harness.config.schema import RootConfig
from harness.run import exit_codes
from harness.run.folder import RunFolder, RunFolderError
from harness.train.exits import RunEnds
from harness.train.loop import Loop
from harness.train.process import Place, ensure_rendezvous
from harness.train.setup import set_up


def main(arguments: Sequence[str]) -> int:
    """Train; the exit code that says how it ended (`harness.run.exit_codes`)."""
    parser = argparse.ArgumentParser(prog="python -m harness.train", description=__doc__)
    parser.add_argument("run_folder", type=Path, help="folder of a launched run: holds config.yaml")
    run = RunFolder(parser.parse_args(arguments).run_folder)
    node = os.environ.get("HARNESS_NODE") or socket.gethostname()
    try:
        place = Place.from_environment(os.environ)
        config = run.load_config()
        ensure_rendezvous(place.world_size)
        with _boards(place) as boards:
            trainer = set_up(run, as_started(config, place), place, boards)
            with trainer.loader:
                Loop(trainer).run()
        dist.destroy_process_group()
        return exit_codes.OK
    except RunEnds as end:
        code, message, everywhere = end.code, str(end), end.on_all_ranks
    except RunFolderError as error:
        code, message, everywhere = exit_codes.CONFIG, str(error), True
    if not everywhere or os.environ.get("LOCAL_RANK", "0") == "0":  # what ends all ranks is said once for each node
        print(f"{node}: {message}", flush=True)
    return code


def as_started(config: RootConfig, place: Place) -> RootConfig:
    """The config with the numbers of nodes and ranks that there are: whoever starts the ranks may use other ones."""
    config.cluster.nodes = place.world_size // place.local_world_size
    config.cluster.ranks_per_node = place.local_world_size
    return config


@contextmanager
def _boards(place: Place) -> Iterator[Path]:
    """The agent's folder of boards, or one of this rank's own where no agent listens."""
    if place.boards is not None:
        yield place.boards
        return
    folder = Path(tempfile.mkdtemp(prefix="harness-board-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
