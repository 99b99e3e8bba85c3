from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from harness.checkpoint.reports import Reports
from harness.checkpoint.save import Saver
from harness.observe.board import Board, board_path
from harness.run.folder import RunFolder

IDENTITY = {"model.hidden_size": 4, "data.seed": 1}


class Alone:
    """A run with one rank, this process."""

    def __init__(self, folder: Path) -> None:
        self.run = RunFolder(folder / "run")
        self.run.create()
        self.board = Board.open_for_write(board_path(folder / "boards", 0))
        self.reports = Reports(self.board, self.run.ledger(0), 0)
        self.group = dist.new_group(backend="gloo")

    def saver(self, **changes: object) -> Saver:
        settings = {"attempt": 0, "identity": IDENTITY, "keep": None, "in_background": False, **changes}
        return Saver(self.run, group=self.group, reports=self.reports, **settings)  # type: ignore[arg-type]

    def events(self) -> list[tuple[str, int]]:
        return [(event["event"], event["step"]) for event in self.run.events()]


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Alone(tmp_path)
    dist.destroy_process_group()


def state_of(value: float) -> dict[str, torch.Tensor]:
    """A state with tensors of every kind that training has."""
    return {
        "model.w": torch.full((5, 4), value),
        "optim.w.exp_avg": torch.arange(20.0).reshape(5, 4) * value,
        "optim.w.step": torch.tensor(value),
    }
