"""Builds everything that a rank trains with, and brings it to where the run stands."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from harness.checkpoint.folders import remove_unfinished
from harness.checkpoint.manifest import identity
from harness.checkpoint.reports import Reports
from harness.checkpoint.restore import CannotResume, restore
from harness.checkpoint.save import Saver
from harness.checkpoint.state import State, training_state
from harness.config.layout import layout
from harness.config.schema import RootConfig
from harness.data.check import resolve_eos
from harness.data.lineage import Lineage
from harness.data.loader import Loader
from harness.data.order import SampleOrder, open_order
from harness.data.read_settings import ReadSettings
from harness.data.skips import Skips
from harness.data.stage_paths import StagedFiles
from harness.data.token_files import TokenSource
from harness.model.init import init_buffers, init_weights
from harness.model.load import InitFromError, load_weights
from harness.observe.board import Activity, Board, RankState, board_path
from harness.observe.reads import BoardReads
from harness.optim.ema import Ema
from harness.optim.optimizer import Optimizer, build_optimizer
from harness.optim.schedule import Curve
from harness.optim.spike import SpikeDetector
from harness.parallel.mesh import Grid, resolve
from harness.parallel.model import ParallelModel
from harness.run.folder import Ledger, RunFolder
from harness.train.build import Built, build_model
from harness.train.devices import init_distributed
from harness.train.exits import BadConfig, Fenced
from harness.train.inputs import InputMaker, buffers_for
from harness.train.meters import PhaseClock, start_board
from harness.train.process import Place
from harness.train.step import Stepper
from harness.train.validation import Validation


@dataclass(frozen=True)
class Data:
    """The run's data, opened."""

    sources: tuple[TokenSource, ...]
    order: SampleOrder
    eos_token_id: int | None


@dataclass
class Trainer:
    """One rank, ready to train."""

    config: RootConfig
    run: RunFolder
    place: Place
    attempt: int
    grid: Grid
    device: torch.device
    board: Board
    reports: Reports
    clock: PhaseClock
    state: State
    saver: Saver
    stepper: Stepper
    loader: Loader
    validation: Validation | None
    step: int
    """Steps done."""
    tokens: int
    """Tokens trained on so far, over all ranks and attempts."""
    resumed_from: int | None


def set_up(run: RunFolder, config: RootConfig, place: Place, boards: Path) -> Trainer:
    """Build and restore. Collective over all ranks. Raises RunEnds where the run can't go on as it is configured."""
    board = Board.open_for_write(board_path(boards, place.rank))
    start_board(board, os.getpid(), place.restart)
    clock = PhaseClock(board)
    device = init_distributed(config, place)
    board.progress()
    attempt = _own_attempt(run, place)
    reports = Reports(board, run.ledger(attempt, place.node), place.rank)
    try:
        grid = resolve(config, place.world_size)
        data = open_data(config)
        built = build_model(config, grid, device, place.rank)
        optimizer = build_optimizer(built.model.parameters, config.optim)
        validation = None
        if config.train.eval_every:
            per_step = layout(config).accumulation_steps if grid.pp > 1 else 1
            validation = Validation(config, data.eos_token_id, micro_batches=per_step)
    except ValueError as error:  # DataError too
        raise BadConfig(str(error)) from error
    if place.rank == 0:
        print("\n".join(built.remarks), end="\n" * bool(built.remarks), flush=True)
    board.set("state", RankState.restoring)
    board.begin(Activity.restoring)
    lineage = Lineage(Skips(config.train.skip), data.order.changes())
    saver = Saver(
        run,
        attempt=attempt,
        group=dist.new_group(backend="gloo"),
        identity=identity(config, data.order.definition()),
        lineage=lineage,
        curve=Curve.of(config),
        keep=config.checkpoint.keep,
        in_background=config.checkpoint.async_save,
        reports=reports,
    )
    spikes = SpikeDetector(config.train.spike_window, config.train.spike_sigmas, config.train.max_nonfinite, device)
    ema = Ema(built.model.parameters, config.optim.ema_decay) if config.optim.ema_decay is not None else None
    state = training_state(
        built.model.parameters, optimizer.state, ema=ema.state() if ema else None, spikes=spikes.state()
    )
    step, tokens = _restore_or_init(run, config, built.model, optimizer, ema, state, saver, lineage, reports)
    loader = start_loader(config, data, grid, place.rank, step or 0, board, reports.ledger, device)
    return Trainer(
        config, run, place, attempt, grid, device, board, reports, clock, state, saver,
        _stepper(config, grid, built, optimizer, spikes, ema, device, place.rank), loader, validation,
        step=step or 0, tokens=tokens, resumed_from=step,
    )  # fmt: skip


def _stepper(
    config: RootConfig,
    grid: Grid,
    built: Built,
    optimizer: Optimizer,
    spikes: SpikeDetector,
    ema: Ema | None,
    device: torch.device,
    rank: int,
) -> Stepper:
    return Stepper(
        built.model,
        optimizer,
        spikes,
        ema,
        InputMaker(built.attention, device, grid.cp, grid.cp_rank(rank)),
        tokens_per_step=config.train.global_batch_size * config.data.seq_len,
        clip_grad_norm=config.optim.clip_grad_norm,
        fsdp_size=grid.fsdp_size,
        tp=grid.tp,
        stage_size=grid.stage_size,
    )


def open_data(config: RootConfig) -> Data:
    """Raises DataError."""
    order = open_order(config.data, config.train.global_batch_size)
    return Data(order.sources, order, resolve_eos(config.data, order.sources))


def _own_attempt(run: RunFolder, place: Place) -> int:
    """Number of the attempt that this rank belongs to. Raises Fenced where a newer one exists."""
    newest = run.newest_attempt()
    attempt = place.attempt if place.attempt is not None else (newest or 0)
    if newest is not None and newest > attempt:
        raise Fenced(f"attempt {newest} of {run.name} has started; attempt {attempt} must not go on")
    return attempt


def start_loader(
    config: RootConfig, data: Data, grid: Grid, rank: int, step: int, board: Board, ledger: Ledger, device: torch.device
) -> Loader:
    """Begin to read what comes after `step` steps."""
    return Loader(
        data.order.sources,
        data.order,
        global_batch_size=config.train.global_batch_size,
        micro_batch_size=config.train.micro_batch_size,
        dp_rank=grid.dp_rank(rank),
        dp_size=grid.dp_size,
        start_step=step,
        stop_step=config.train.steps,
        seq_len=config.data.seq_len,
        eos_token_id=data.eos_token_id,
        document_mask=config.data.document_mask,
        reading=ReadSettings.of(config.data, config.data.sources),
        observer=BoardReads(board, ledger),
        vocab_size=config.model.vocab_size,
        skips=Skips(config.train.skip),
        staged=_staged_files(config, data),
        allocate=buffers_for(device),
    )


def _staged_files(config: RootConfig, data: Data) -> StagedFiles | None:
    """Where the loader finds copies on this node's own disk, if the run stages any."""
    if config.data.stage_to is None:
        return None
    return StagedFiles(config.data.stage_to, [file.path for source in data.order.sources for file in source.files])


def _restore_or_init(
    run: RunFolder,
    config: RootConfig,
    model: ParallelModel,
    optimizer: Optimizer,
    ema: Ema | None,
    state: State,
    saver: Saver,
    lineage: Lineage,
    reports: Reports,
) -> tuple[int | None, int]:
    """Steps done (None: a fresh start) and tokens seen. Raises BadConfig."""
    if reports.rank == 0:
        remove_unfinished(run.checkpoints_dir)
    absent: set[str] = set()
    try:
        for stage in model.stages:
            init_buffers(stage)
        manifest = restore(
            run,
            state,
            identity=saver.identity,
            lineage=lineage,
            curve=Curve.of(config),
            absent=absent,
            verify=config.checkpoint.verify,
            group=saver.group,
            reports=reports,
        )
        if manifest is not None:
            if ema is not None and any(name.startswith("ema.") for name in absent):
                ema.reset()
            return manifest.step, manifest.tokens
        started = time.perf_counter()
        for stage in model.stages:
            if config.model.init_from is not None:
                load_weights(stage, Path(config.model.init_from).expanduser())
            else:
                init_weights(stage, config.train.seed)
        optimizer.reset()
        if ema is not None:
            ema.reset()
    except (CannotResume, InitFromError) as error:
        raise BadConfig(str(error)) from error
    if reports.rank == 0:
        origin = config.model.init_from or f"train.seed={config.train.seed}"
        print(f"initialised the weights from {origin} in {time.perf_counter() - started:.1f} s", flush=True)
    return None, 0
