"""From a micro batch of the loader to what this rank's stages compute on."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from harness.data.buffers import Allocate, pageable
from harness.data.loader import MicroBatch
from harness.model.attention import Attention
from harness.parallel.model import Inputs
from harness.parallel.sequence import shard_sequence


def buffers_for(device: torch.device) -> Allocate:
    """Memory for the loader's batches: on GPUs pinned, so that the device fetches them while everything else goes on."""
    return _pinned if device.type == "cuda" else pageable


def _pinned(size: int) -> np.ndarray:
    return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()


@dataclass(frozen=True)
class InputMaker:
    """Takes this rank's part of every sequence and adds what attention needs to know of the documents."""

    attention: Attention
    device: torch.device
    cp: int
    cp_rank: int
    _under_way: deque[tuple[torch.cuda.Event, MicroBatch]] = field(default_factory=deque, init=False, repr=False)
    """Micro batches that the device may not have fetched yet: the loader would use their memory again."""

    def __call__(self, micro: MicroBatch) -> Inputs:
        """The keyword arguments of `Stage.forward` on the device. Copies are queued, not waited for."""
        arrays = (("x", micro.input_ids), ("labels", micro.labels), ("position_ids", micro.position_ids))
        own = {name: self._move(torch.from_numpy(self._own(array))).long() for name, array in arrays}
        attention = {name: self._move(value) for name, value in self.attention.inputs(micro.position_ids).items()}
        self._hold(micro)
        return {**own, **attention}

    def _own(self, array: np.ndarray) -> np.ndarray:
        return shard_sequence(array, self.cp, self.cp_rank)

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or self.device.type != "cuda":
            return value
        # from pageable memory the copy would wait for all that the device still has to do
        pinned = value if value.is_pinned() else value.pin_memory()
        return pinned.to(self.device, non_blocking=True)

    def _hold(self, micro: MicroBatch) -> None:
        if self.device.type != "cuda":
            return
        while self._under_way and self._under_way[0][0].query():
            self._under_way.popleft()
        event = torch.cuda.Event()
        event.record()
        self._under_way.append((event, micro))
