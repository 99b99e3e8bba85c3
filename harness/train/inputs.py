"""From a micro batch of the loader to what this rank's stages compute on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from harness.data.loader import MicroBatch
from harness.model.attention import Attention
from harness.parallel.model import Inputs
from harness.parallel.sequence import shard_sequence


@dataclass(frozen=True)
class InputMaker:
    """Takes this rank's part of every sequence and adds what attention needs to know of the documents."""

    attention: Attention
    device: torch.device
    cp: int
    cp_rank: int

    def __call__(self, micro: MicroBatch) -> Inputs:
        """The keyword arguments of `Stage.forward` on the device. Copies are queued, not waited for."""
        own = {
            name: torch.from_numpy(self._own(array))
            for name, array in (("x", micro.input_ids), ("labels", micro.labels), ("position_ids", micro.position_ids))
        }
        return {name: self._move(value) for name, value in {**own, **self.attention.inputs(micro.position_ids)}.items()}

    def _own(self, array: np.ndarray) -> np.ndarray:
        return shard_sequence(array, self.cp, self.cp_rank)

    def _move(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or self.device.type != "cuda":
            return value
        # from pageable memory the copy would wait for all that the device still has to do
        return value.pin_memory().to(self.device, non_blocking=True)
