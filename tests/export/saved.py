"""Runs with a checkpoint, as ranks in some layout write it."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from harness.checkpoint.manifest import identity
from harness.checkpoint.reports import Reports
from harness.checkpoint.save import Saver
from harness.checkpoint.state import training_state
from harness.config.schema import ActivationCheckpoint, ModelConfig
from harness.model.init import init_weights
from harness.model.stage import Stage, build_stage
from harness.model.token_loss import TokenLoss
from harness.observe.board import Board, board_path
from harness.parallel.apply import Treatment, parallelize
from harness.parallel.mesh import Grid, build_meshes
from harness.parallel.timetable import layers_of_stages
from harness.run.folder import RunFolder
from tests.ranks import in_ranks
from tests.tiny import tiny_run

SEED = 5
CPU = torch.device("cpu")
ALONE = Grid(pp=1, dp_replicate=1, dp_shard=1, cp=1, tp=1)


def whole(model: ModelConfig) -> Stage:
    """The model in one process, with the weights that the run starts from."""
    stage = build_stage(model, "sdpa", range(model.num_hidden_layers), TokenLoss(z_loss=0.0)).to_empty(device=CPU)
    stage.lm.tie_weights()
    init_weights(stage, SEED)
    return stage


def saved_run(
    root: Path, grid: Grid = ALONE, steps: tuple[int, ...] = (6,), ema: bool = False, **changes: Any
) -> RunFolder:
    """A run whose checkpoints hold its first weights, times the step; the moving average is half of that."""
    run = tiny_run(root, optim__ema_decay=0.5 if ema else None, **changes)
    in_ranks(_save, grid.world_size, run, grid, steps, ema)
    return run


def _save(rank: int, world_size: int, run: RunFolder, grid: Grid, steps: tuple[int, ...], ema: bool) -> None:
    config = run.load_config()
    meshes = build_meshes(grid, "cpu")
    layers = layers_of_stages(config.model.num_hidden_layers, grid.pp)[grid.pp_rank(rank)]
    loss = TokenLoss(z_loss=0.0, tp_mesh=meshes.tp) if layers.stop == config.model.num_hidden_layers else None
    stage = build_stage(config.model, "sdpa", layers, loss)
    parallelize(stage, meshes, Treatment(torch.float32, None, False, ActivationCheckpoint.none, False))
    init_weights(stage.to_empty(device=CPU), SEED)
    parameters = stage.weights()
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
