"""Closes the circle: what was written, loaded by plain transformers, computes what the run's own model computes."""

from pathlib import Path

import torch

from harness.config.schema import RootConfig
from harness.export.errors import ExportError
from harness.export.weights import Weights
from harness.model.compare import available_bytes, bytes_needed, compare
from harness.model.init import init_buffers
from harness.model.stage import Stage
from harness.text import bytes_text


def compared(config: RootConfig, folder: Path, weights: Weights, dtype: torch.dtype) -> list[str]:
    """Compare logits on a few tokens; remarks for the user. Raises ExportError if they differ.

    Reads the weights two more times, and takes one copy of them in fp32 in main memory: without room for that it says so
    and compares nothing.
    """
    needed, available = bytes_needed(config.model), available_bytes()
    if needed > available:
        return [
            f"not compared with transformers: that takes {bytes_text(needed)} of main memory, and {bytes_text(available)} is free"
        ]

    def load(stage: Stage) -> None:
        init_buffers(stage)
        parameters = stage.weights()
        for name, tensor in weights.read(list(parameters)):
            parameters[name].copy_(tensor.to(dtype))

    try:
        found = compare(config.model, folder, load, config.data.seq_len)
    except ExportError:
        raise
    except Exception as error:  # transformers raises whatever its own loading does
        raise ExportError(f"transformers can't load what was written: {type(error).__name__}: {error}") from error
    if found.same:
        return []
    raise ExportError(
        "plain transformers computes something else with the exported model than the run does; report this:\n  "
        + "\n  ".join(found.problems())
    )
