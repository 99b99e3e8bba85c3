"""Real rank processes for tests, forked from a server that has imported torch once, so that each starts in no time."""

import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch


def _context() -> SpawnContext | ForkServerContext:
    """Where there is a GPU, what the server imports would start CUDA, which does not live through a fork."""
    if torch.cuda.is_available():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["harness.train.rank", "transformers.models.smollm3.modeling_smollm3"])
    return context


_CONTEXT = _context()


def in_ranks(function: Callable[..., Any], world_size: int, *arguments: Any, timeout: float = 120) -> list[Any]:
    """What `function(rank, world_size, *arguments)` returns on each rank of a gloo group; fails where one raises."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(target=_call, args=(function, rank, world_size, port, arguments, folder), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        codes = exit_codes(processes, timeout)
        found = [Path(folder, str(rank)) for rank in range(world_size)]
        failures = [path.with_suffix(".error") for path in found if path.with_suffix(".error").exists()]
        assert not failures, "\n".join(f"rank {path.stem}: {path.read_text()}" for path in failures)
        assert not any(codes), f"exit codes {codes}"
        return [pickle.loads(path.read_bytes()) for path in found]


def start_trainers(
    run: Path, world_size: int, boards: Path, attempt: int | None = None, **env: str
) -> list[BaseProcess]:
    """The ranks of `python -m harness.train run`, each with its output in `boards`/rank-N.log."""
    port = free_port()
    if attempt is not None:
        env["HARNESS_ATTEMPT"] = str(attempt)
    processes = []
    for rank in range(world_size):
        own = {**_rank_environment(rank, world_size, port), "HARNESS_BOARD_DIR": str(boards), **env}
        processes.append(_CONTEXT.Process(target=_train, args=(str(run), own, str(boards), rank), daemon=True))
    for process in processes:
        process.start()
    return processes


def exit_codes(processes: list[BaseProcess], timeout: float = 120) -> list[int | None]:
    """Wait for all; their exit codes, negative for a signal. One that does not end in time is killed and fails."""
    for process in processes:
        process.join(timeout)
    late = [process for process in processes if process.is_alive()]
    for process in late:
        process.kill()
        process.join()
    assert not late, "a rank did not end"
    return [process.exitcode for process in processes]


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _rank_environment(rank: int, world_size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "HARNESS_NODE": "testnode",
        "OMP_NUM_THREADS": "1",
    }


def _call(
    function: Callable[..., Any], rank: int, world_size: int, port: int, arguments: tuple[Any, ...], folder: str
) -> None:
    import torch
    import torch.distributed as dist

    os.environ.update(_rank_environment(rank, world_size, port))
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo")
        Path(folder, str(rank)).write_bytes(pickle.dumps(function(rank, world_size, *arguments)))
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)  # the others may wait for this rank: let them find it gone


def _train(run: str, env: dict[str, str], boards: str, rank: int) -> None:
    os.environ.update(env)
    log = os.open(os.path.join(boards, f"rank-{rank}.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    from harness.train.process import prepare_process

    prepare_process()
    import torch

    from harness.train.rank import main

    torch.set_num_threads(1)
    sys.exit(main([run]))
