"""Runs with a checkpoint, as ranks in some layout write it."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.checkpoint.manifest import identity
from harness.checkpoint.reports import Reports
from harness.checkpoint.save import Saver
from harness.checkpoint.state import training_state
from harness.config.schema import ModelConfig
from harness.model.init import init_weights
from harness.model.stage import Stage, build_stage
from harness.model.token_loss import TokenLoss
from harness.observe.board import Board, board_path
from harness.parallel.mesh import resolve
from harness.run.folder import RunFolder
from harness.train.build import build_model
from tests.ranks import in_ranks
from tests.tiny import tiny_run

SEED = 5
CPU = torch.device("cpu")


def whole(model: ModelConfig) -> Stage:
    """The model in one process, with the weights that the run starts from."""
    stage = build_stage(model, "sdpa", range(model.num_hidden_layers), TokenLoss(z_loss=0.0)).to_empty(device=CPU)
    stage.lm.tie_weights()
    init_weights(stage, SEED)
    return stage


def saved_run(
    root: Path, *, ranks: int = 1, steps: tuple[int, ...] = (6,), ema: bool = False, **changes: Any
) -> RunFolder:
    """A run whose checkpoints hold its first weights, times the step; the moving average is half of that."""
    run = tiny_run(root, optim__ema_decay=0.5 if ema else None, **changes)
    in_ranks(_save, ranks, run, steps, ema)
    return run


def _save(rank: int, world_size: int, run: RunFolder, steps: tuple[int, ...], ema: bool) -> None:
    config = run.load_config()
    config.cluster.ranks_per_node = world_size
    model = build_model(config, resolve(config, world_size), CPU, rank).model
    for stage in model.stages:
        init_weights(stage, SEED)
    parameters = model.parameters
    first = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    optimizer = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in first.items()}
    reports = Reports(Board.open_for_write(board_path(run.path / "boards", rank)), run.ledger(0), rank)
    group = dist.new_group(backend="gloo")
    saver = Saver(
        run, attempt=0, group=group, identity=identity(config, {}), keep=None, in_background=False, reports=reports
    )
    with torch.no_grad():
        for step in steps:
            for name, parameter in parameters.items():
                parameter.copy_(first[name] * step)
            average = {name: parameter / 2 for name, parameter in parameters.items()} if ema else None
            saver.save(training_state(parameters, optimizer, ema=average), step, step * 1000)
