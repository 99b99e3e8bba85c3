"""What ranks do in tests in place of `harness.verify.rank.measure`: the same with a mistake in it, or something worse."""

import multiprocessing
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from harness.verify.rank import measure


def shards_from_one_seed(*arguments: Any) -> None:
    """Every rank fills its part of a tensor as if it were the first part."""
    import harness.model.init

    real = harness.model.init.own_part

    def first_part(tensor: torch.Tensor) -> tuple[slice, ...]:
        return tuple(slice(0, part.stop - part.start) for part in real(tensor))

    harness.model.init.own_part = first_part
    measure(*arguments)


def gradients_averaged_over_cp(*arguments: Any) -> None:
    """What the ranks of a sequence want of each other's keys and values is averaged, not summed."""
    import harness.model.attention_functions as functions

    real = functions.gather_sequence

    def halved(local: torch.Tensor, group: Any) -> torch.Tensor:
        return real(local / 2 + local.detach() / 2, group)

    functions.gather_sequence = halved
    measure(*arguments)


def crash(folder: Path, reference: Path | None) -> None:
    if os.environ["RANK"] == "1":
        raise ValueError("planted")
    time.sleep(0.5)
    raise RuntimeError("the other one has gone")


def hang(folder: Path, reference: Path | None) -> None:
    if os.environ["RANK"] == "1":
        time.sleep(1000)


def full_disk(*arguments: Any) -> None:
    """There is no room for the checkpoint."""
    import harness.checkpoint.save

    def no_room(*state: Any, **settings: Any) -> None:
        raise OSError(28, "No space left on device")

    harness.checkpoint.save.dcp_save = no_room
    measure(*arguments)


def sees_no_gpu() -> None:
    """Fails where a rank that computes on the CPU could start CUDA, or has imported what starts it."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert sys.modules.get("torchao") is None and "harness.verify.rank" in sys.modules
    assert not torch.cuda.is_initialized()


def no_server() -> None:
    """Fails where the process was forked from a server, which its own parent is not."""
    parent = multiprocessing.parent_process()
    assert parent is not None and os.getppid() == parent.pid
