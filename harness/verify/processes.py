"""Starts ranks as processes and waits for them: all of them here, or one beside each rank that torchrun has started.

They are forked from a server that has imported torch once, so that each starts in no time. Ranks that compute on the CPU see
no GPU: the checkpoint's writer would use one. If the server has started CUDA all the same, ranks on GPUs start anew instead.
Imports no torch.
"""

import multiprocessing
import os
import socket
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess, SpawnContext, SpawnProcess
from pathlib import Path
from typing import Any

TIMEOUT = 600.0
"""Seconds that the ranks of a layout may take. On a GPU they compile first."""
GRACE = 5.0
"""Seconds that the others have to end by themselves once one has failed."""

COMPILER = "torch._inductor.compile_fx"
"""Which every rank on a GPU would import for itself otherwise: the optimizer's step is compiled there."""

LAST_LINES = 12
"""Of what a failed rank printed are shown."""

Target = Callable[..., None]
Process = ForkServerProcess | SpawnProcess


@dataclass(frozen=True)
class Failure:
    """Why a rank did not finish."""

    rank: int
    text: str
    time: float
    """When it printed its last line, or the wait for it was over: Unix time."""


class Starter(ABC):
    """Where the ranks of a layout run."""

    main: bool = True
    """Whether this process prepares, compares and prints."""

    def __init__(self, model_type: str, *, on_gpu: bool) -> None:
        """Starts the server, which is ready some seconds later."""
        self._on_gpu = on_gpu
        self._environment = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
        modules = ["harness.verify.preload", f"transformers.models.{model_type}.modeling_{model_type}"]
        self._server = _start_server([*modules, *([COMPILER] if on_gpu else [])], self._environment)

    @cached_property
    def _context(self) -> ForkServerContext | SpawnContext:
        if not self._on_gpu:
            return self._server
        trial = self._server.Process(target=_use_gpu, daemon=True)
        trial.start()
        trial.join()
        return multiprocessing.get_context("spawn") if trial.exitcode else self._server

    @abstractmethod
    def run(self, target: Target, ranks: int, logs: Path, *arguments: Any) -> list[Failure]:
        """Call `target(*arguments)` in each of `ranks` processes that can join each other. Returns the ranks that failed, the
        first one first; what they print goes to `logs`/rank-N.log."""

    def run_here(self, target: Target, ranks: int, logs: Path, *arguments: Any) -> list[Failure]:
        """`run`, with all ranks on this machine."""
        port = free_port()
        environments = [
            {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **self._environment}
            for rank in range(ranks)
        ]  # fmt: skip
        return self._run_processes(target, environments, logs, arguments)

    def _run_processes(
        self, target: Target, environments: Sequence[dict[str, str]], logs: Path, arguments: tuple[Any, ...]
    ) -> list[Failure]:
        logs.mkdir(parents=True, exist_ok=True)
        processes: dict[int, Process] = {}
        try:
            for environment in environments:
                log = logs / f"rank-{environment['RANK']}.log"
                log.touch()
                process = self._context.Process(target=_enter, args=(target, arguments, environment, log), daemon=True)
                process.start()
                processes[int(environment["RANK"])] = process
            return _wait(processes, logs)
        finally:
            for process in processes.values():
                process.kill()
                process.join()


class OnThisMachine(Starter):
    """All ranks are processes of this machine."""

    def run(self, target: Target, ranks: int, logs: Path, *arguments: Any) -> list[Failure]:
        return self.run_here(target, ranks, logs, *arguments)


class BesideTorchrun(Starter):
    """Each process that torchrun has started runs one rank in a process below it, so that one that hangs can be ended."""

    def __init__(self, model_type: str, *, on_gpu: bool) -> None:
        """Collective over the processes."""
        import torch.distributed as dist

        super().__init__(model_type, on_gpu=on_gpu)
        dist.init_process_group("gloo")
        self.main = dist.get_rank() == 0

    def run(self, target: Target, ranks: int, logs: Path, *arguments: Any) -> list[Failure]:
        import torch.distributed as dist

        assert ranks == dist.get_world_size()
        port = self.share(free_port())
        failures = self._run_processes(
            target, [{**os.environ, **self._environment, "MASTER_PORT": str(port)}], logs, arguments
        )
        gathered: list[list[Failure]] = [[]] * ranks
        dist.all_gather_object(gathered, failures)
        return _in_order(failure for of_rank in gathered for failure in of_rank)

    def share(self, value: Any) -> Any:
        """What the main process has for `value`, in all of them."""
        import torch.distributed as dist

        shared = [value]
        dist.broadcast_object_list(shared, src=0)
        return shared[0]


def _start_server(modules: list[str], environment: dict[str, str]) -> ForkServerContext:
    """A server that has imported `modules`, with these variables in its environment."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(modules)
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        forkserver.ensure_running()  # with this environment
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


def _use_gpu() -> None:
    """Fails in a process that was forked after CUDA had started."""
    import torch

    torch.ones(1, device="cuda")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("", 0))
        return int(s.getsockname()[1])


def _wait(processes: dict[int, Process], logs: Path) -> list[Failure]:
    """Wait until all have ended, or one has failed and the others have had their time."""
    deadline = time.monotonic() + TIMEOUT
    running, failures = dict(processes), []
    while running and (left := deadline - time.monotonic()) > 0:
        wait([process.sentinel for process in running.values()], left)
        for rank, process in list(running.items()):
            if process.exitcode is not None:
                del running[rank]
                if process.exitcode:
                    failures.append(_failure(rank, logs / f"rank-{rank}.log", process.exitcode))
                    deadline = min(deadline, time.monotonic() + GRACE)
    hung = [Failure(rank, f"did not finish within {TIMEOUT:.0f} s", time.time()) for rank in running]
    return _in_order(failures) or hung


def _in_order(failures: Iterable[Failure]) -> list[Failure]:
    """The first one first: the others mostly failed for want of it."""
    return sorted(failures, key=lambda failure: failure.time)


def _failure(rank: int, log: Path, code: int) -> Failure:
    """With the end of what the rank printed."""
    lines = log.read_text(errors="replace").rstrip().splitlines()
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return Failure(rank, "\n".join([ended, *lines[-LAST_LINES:]]), log.stat().st_mtime)


def _enter(target: Target, arguments: tuple[Any, ...], environment: dict[str, str], log: Path) -> None:
    """A rank's process."""
    os.environ.update(environment)
    os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # the ranks below torchrun's have a store of their own
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    from harness.train.process import prepare_process

    prepare_process()
    import torch

    torch.set_num_threads(1)
    try:
        target(*arguments)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # the others may wait for this rank: let them find it gone
