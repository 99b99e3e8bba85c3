"""One rank as a process: where it stands among the others, signals, threads, and not outliving its launcher."""

import faulthandler
import os
import signal
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.run.parent import die_with
from harness.system.output import keep_printing
from harness.train.exits import BadConfig


@dataclass(frozen=True)
class Place:
    """What the launcher tells a rank through its environment."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    restart: int
    """How often this rank was started again inside the same attempt."""
    attempt: int | None
    """None where no agent started the rank."""
    node: str
    boards: Path | None
    """Folder of the node's boards; None where no agent listens."""

    @classmethod
    def from_environment(cls, env: Mapping[str, str]) -> "Place":
        """Raises BadConfig naming the variable that is not a number."""

        def number(name: str, default: int) -> int:
            try:
                return int(env.get(name, default))
            except ValueError:
                raise BadConfig(f"environment variable {name}={env[name]}: must be a whole number") from None

        return cls(
            rank=number("RANK", 0),
            local_rank=number("LOCAL_RANK", 0),
            world_size=number("WORLD_SIZE", 1),
            local_world_size=number("LOCAL_WORLD_SIZE", 1),
            restart=number("TORCHELASTIC_RESTART_COUNT", 0),
            attempt=number("HARNESS_ATTEMPT", 0) if "HARNESS_ATTEMPT" in env else None,
            node=env.get("HARNESS_NODE") or socket.gethostname(),
            boards=Path(env["HARNESS_BOARD_DIR"]) if env.get("HARNESS_BOARD_DIR") else None,
        )


def prepare_process() -> None:
    """Set up signals and the tie to the launcher. To be called before the slow imports, and raises nothing."""
    keep_printing()  # a full disk under the log must not end training
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm sends it to every process; the agent acts on it
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the agent asks for stacks with it
    faulthandler.enable()
    die_with(os.getppid())
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models are built from the config: nothing is to be looked up


def threads_per_rank(local_world_size: int) -> int | None:
    """Threads for torch's operators: this rank's share of the cores. None where OMP_NUM_THREADS decides."""
    if os.environ.get("OMP_NUM_THREADS"):
        return None
    return max(1, len(os.sched_getaffinity(0)) // local_world_size)


def ensure_rendezvous(world_size: int) -> None:
    """Let a single rank run without a launcher. Raises BadConfig for several without MASTER_ADDR."""
    if "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        return
    if world_size > 1:
        raise BadConfig("MASTER_ADDR and MASTER_PORT are not set: start the ranks with torchrun or harness.launch")
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        os.environ["MASTER_PORT"] = str(s.getsockname()[1])
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        os.environ.setdefault(name, value)
