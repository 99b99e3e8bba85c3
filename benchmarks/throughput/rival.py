"""The rival's side: torchtitan's llama3 family in the same shape, started by torchrun as its own script does."""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import gpus
from benchmarks.processes import end_group, start, tail, watch, why_failed
from benchmarks.throughput.settings import RIVAL, Measurement, Setting, shape_config
from harness.config.schema import ModelConfig
from harness.model.family import head_dim

LLAMA_LIKE = ("llama", "smollm3")
"""Architectures that torchtitan's llama3 family matches product for product. What differs costs next to nothing or is the
rival's own choice: its output head is not tied, and it rotates the positions of every layer."""


class NoCounterpart(Exception):
    """torchtitan's llama3 family can't take this shape; the message says why."""


def model_arguments(model: ModelConfig) -> dict[str, Any]:
    """Fields of torchtitan's TransformerModelArgs. Raises NoCounterpart."""
    if model.model_type not in LLAMA_LIKE:
        raise NoCounterpart(f"model_type={model.model_type} has no counterpart in torchtitan's llama3 family")
    if head_dim(model) * model.num_attention_heads != model.hidden_size:
        raise NoCounterpart("torchtitan's llama3 family has no head_dim other than hidden_size / num_attention_heads")
    return {
        "dim": model.hidden_size,
        "n_layers": model.num_hidden_layers,
        "n_heads": model.num_attention_heads,
        "n_kv_heads": model.num_key_value_heads,
        "vocab_size": model.vocab_size,
        # its feed-forward width is 8/3 x dim x multiplier, rounded up to a multiple: here from a third of the width to it
        "ffn_dim_multiplier": model.intermediate_size / (8 * model.hidden_size),
        "multiple_of": model.intermediate_size,
        "norm_eps": model.rms_norm_eps,
        "rope_theta": model.rope_theta,
    }


def command(setting: Setting, model: ModelConfig, folder: Path) -> list[str]:
    """torchrun with one rank for each GPU. Raises NoCounterpart."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={setting.gpus}",
        "-m", "benchmarks.throughput.torchtitan_rival",
        "--model", json.dumps(model_arguments(model)),
        "--precision", setting.precision,
        "--micro-batch", str(setting.micro_batch),
        "--seq-len", str(setting.seq_len),
        "--steps", str(setting.steps),
        "--activation-checkpoint", setting.activation_checkpoint,
        "--dump-folder", str(folder),
    ]  # fmt: skip


def environment(devices: Sequence[int]) -> dict[str, str]:
    """What torchtitan's run_train.sh sets, the same GPUs and as many threads as our agent gives its ranks."""
    return {
        "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "4"),
        **gpus.environment(devices),
    }


async def measure(setting: Setting, folder: Path, seconds: float, devices: Sequence[int]) -> Measurement:
    """One run of at most `seconds` on these GPUs. Why it failed is in its `error`; nothing is raised."""
    began, clock = time.monotonic(), time.time()
    try:
        wanted = command(setting, shape_config(setting.shape), folder)
    except NoCounterpart as error:
        return Measurement(RIVAL, setting, error=str(error))
    log = folder / "torchtitan.log"
    process = start(wanted, log, environment(devices))

    def ended() -> dict[str, Any] | None:
        gone = process.poll() is not None  # before the log is read, so that its last line is seen
        return result_line(log) or ({"error": why_failed(log)} if gone else None)

    try:
        found = await watch(ended, began + seconds)
    finally:
        end_group(process)
    if found is None:
        found = {"error": f"not done after {seconds:.0f} s"}
    if "error" in found:
        return Measurement(RIVAL, setting, error=found["error"], log_tail=tail(log))
    return Measurement(
        RIVAL,
        setting,
        rates=found["rates"],
        parameters=found["parameters"],
        flops_per_token=found["flops_per_token"],
        first_step_seconds=found["first_step_time"] - clock,
        versions=found["versions"],
    )


def result_line(log: Path) -> dict[str, Any] | None:
    """The line of JSON that a rank prints at its end or when it fails, if it has."""
    try:
        text = log.read_text(errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f'{{"program": "{RIVAL}"'):
            try:
                found: dict[str, Any] = json.loads(line)
                return found
            except ValueError:
                continue  # half written
    return None
