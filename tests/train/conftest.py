"""Training in the test's own process, with a look at what it trained."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from harness.config.schema import RootConfig
from harness.parallel.local import local
from harness.run.folder import RunFolder
from harness.train import rank as rank_module
from harness.train.process import Place
from harness.train.setup import Trainer, set_up
from tests.tiny import write_tokens


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokens(tmp_path_factory.mktemp("tokens") / "web")


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Lets `train` run in this process; the folder of its board."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HARNESS_BOARD_DIR", str(tmp_path / "boards"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield tmp_path / "boards"
    torch.set_num_threads(threads)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def train(run: RunFolder) -> int:
    """Exit code of `python -m harness.train run`, in this process; needs `alone`."""
    code = rank_module.main([str(run.path)])
    if torch.distributed.is_initialized():  # a process that fails would have ended by now
        torch.distributed.destroy_process_group()
    return code


def trainers_of(
    monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Trainer], None] = lambda trainer: None
) -> list[Trainer]:
    """The trainers of all later calls of `train`, each given to `prepare` before it trains."""
    seen: list[Trainer] = []

    def watched(run: RunFolder, config: RootConfig, place: Place, boards: Path) -> Trainer:
        trainer = set_up(run, config, place, boards)
        seen.append(trainer)
        prepare(trainer)
        return trainer

    monkeypatch.setattr(rank_module, "set_up", watched)
    return seen


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """A copy of all that a checkpoint would hold."""
    return {name: local(tensor).clone() for name, tensor in trainer.state.items()}
