"""Builds everything that a rank trains with, and brings it to where the run stands."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.optim import AdamW

from harness.checkpoint.folders import remove_unfinished
from harness.checkpoint.manifest import identity
from harness.checkpoint.reports import Reports
from harness.checkpoint.restore import CannotResume, restore
from harness.checkpoint.save import Saver
from harness.checkpoint.state import State, training_state
from harness.config.schema import RootConfig
from harness.data.check import resolve_eos
from harness.data.loader import Loader
from harness.data.order import SampleOrder
from harness.data.token_files import TokenSource, open_sources
from harness.model.attention import VARLEN, choose_attention
from harness.model.build import build_on_meta
from harness.model.init import InitFromError, init_buffers, init_weights, load_weights
from harness.model.loss import LossModel
from harness.observe.board import Board, RankState, board_path
from harness.observe.reads import BoardReads
from harness.optim.groups import build_optimizer, reset_state
from harness.parallel.apply import compute_dtype, parallelize
from harness.parallel.mesh import Grid, build_mesh, resolve
from harness.run.folder import RunFolder
from harness.train.exits import BadConfig, Fenced
from harness.train.meters import PhaseClock, start_board
from harness.train.process import Place, threads_per_rank
from harness.train.step import Stepper


@dataclass(frozen=True)
class Data:
    """The run's data, opened."""

    sources: list[TokenSource]
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
    attempt = _own_attempt(run, place)
    reports = Reports(board, run.ledger(attempt, place.node), place.rank)
    try:
        grid = resolve(config.parallel, place.world_size)
        data = open_data(config)
        model, attention = _build_model(config, grid, device, place.rank)
        optimizer = build_optimizer(model.lm, config.optim)
    except ValueError as error:  # DataError too
        raise BadConfig(str(error)) from error
    board.set("state", RankState.restoring)
    saver = Saver(
        run,
        attempt=attempt,
        group=dist.new_group(backend="gloo"),
        identity=identity(config, data.order.definition()),
        keep=config.checkpoint.keep,
        in_background=config.checkpoint.async_save,
        reports=reports,
    )
    state = training_state(model.lm, optimizer)
    step, tokens = _restore_or_init(run, config, model, optimizer, state, saver, reports)
    stepper = Stepper(
        model,
        optimizer,
        device,
        dp_size=grid.dp_size,
        tp=grid.tp,
        tokens_per_step=config.train.global_batch_size * config.data.seq_len,
        clip_grad_norm=config.optim.clip_grad_norm,
        bounds_from_host=attention == VARLEN,
        switch_phase=clock.switch,
    )
    loader = _start_loader(config, data, grid, place.rank, step or 0, board)
    return Trainer(
        config, run, place, attempt, grid, device, board, reports, clock, state, saver, stepper, loader,
        step=step or 0, tokens=tokens, resumed_from=step,
    )  # fmt: skip


def init_distributed(config: RootConfig, place: Place) -> torch.device:
    """Join the other ranks; the device that this one computes on. Raises RuntimeError where its GPU can't be used."""
    threads = threads_per_rank(place.local_world_size)
    if threads is not None:
        torch.set_num_threads(threads)
    if not config.cluster.gpus_per_node:
        dist.init_process_group("gloo")
        return torch.device("cpu")
    if torch.cuda.device_count() <= place.local_rank:
        raise RuntimeError(
            f"{place.node}: rank {place.rank} needs GPU {place.local_rank}, torch sees {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", place.local_rank)
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    return device


def open_data(config: RootConfig) -> Data:
    """Raises DataError."""
    data = config.data
    sources = open_sources([(name, source.path) for name, source in data.sources.items()], data.seq_len)
    order = SampleOrder(
        sources,
        data.stages,
        seed=data.seed,
        seq_len=data.seq_len,
        global_batch_size=config.train.global_batch_size,
    )
    return Data(sources, order, resolve_eos(data, sources))


def _own_attempt(run: RunFolder, place: Place) -> int:
    """Number of the attempt that this rank belongs to. Raises Fenced where a newer one exists."""
    newest = run.newest_attempt()
    attempt = place.attempt if place.attempt is not None else (newest or 0)
    if newest is not None and newest > attempt:
        raise Fenced(f"attempt {newest} of {run.name} has started; attempt {attempt} must not go on")
    return attempt


def _start_loader(config: RootConfig, data: Data, grid: Grid, rank: int, step: int, board: Board) -> Loader:
    """Begin to read what comes after `step` steps."""
    return Loader(
        data.sources,
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
        read_ahead_batches=config.data.read_ahead_batches,
        read_threads=config.data.read_threads,
        slow_read_seconds=config.data.slow_read_seconds,
        observer=BoardReads(board),
        vocab_size=config.model.vocab_size,
    )


def _build_model(config: RootConfig, grid: Grid, device: torch.device, rank: int) -> tuple[LossModel, str]:
    """This rank's part of the model, in memory but not yet filled; and how it attends."""
    dtype = compute_dtype(config.train, device.type)
    attention, remark = choose_attention(device, dtype, config.data.document_mask)
    if remark and rank == 0:
        print(remark, flush=True)
    model = LossModel(build_on_meta(config.model, attention))
    parallelize(model, build_mesh(grid, device.type), config.train)
    model.to_empty(device=device)
    return model, attention


def _restore_or_init(
    run: RunFolder,
    config: RootConfig,
    model: LossModel,
    optimizer: AdamW,
    state: State,
    saver: Saver,
    reports: Reports,
) -> tuple[int | None, int]:
    """Steps done (None: a fresh start) and tokens seen. Raises BadConfig."""
    if reports.rank == 0:
        remove_unfinished(run.checkpoints_dir)
    try:
        manifest = restore(
            run, state, identity=saver.identity, verify=config.checkpoint.verify, group=saver.group, reports=reports
        )
        if manifest is not None:
            init_buffers(model.lm)
            return manifest.step, manifest.tokens
        started = time.perf_counter()
        if config.model.init_from is not None:
            load_weights(model.lm, Path(config.model.init_from))
        else:
            init_weights(model.lm, config.train.seed)
        reset_state(optimizer)
    except (CannotResume, InitFromError) as error:
        raise BadConfig(str(error)) from error
    if reports.rank == 0:
        origin = config.model.init_from or f"train.seed={config.train.seed}"
        print(f"initialised the weights from {origin} in {time.perf_counter() - started:.1f} s", flush=True)
    return None, 0
