"""What is measured, and what comes out of one run."""

import dataclasses
import statistics
from dataclasses import dataclass, field
from typing import Any

from benchmarks.throughput.layouts import Layout
from harness.config.compose import compose
from harness.config.schema import ModelConfig

WARMUP_STEPS = 10
"""Steps that don't count: they compile, tune and fill caches."""
WINDOW_STEPS = 10
"""Each rate is a mean over this many steps, in both programs."""
PRECISIONS = ("bf16", "fp8", "fp8_rowwise")
"""fp8 scales by tensor, fp8_rowwise by row; master weights and optimizer state are fp32 in each."""
ACTIVATION_CHECKPOINTS = ("none", "selective")
OURS, RIVAL = "harness", "torchtitan"


@dataclass(frozen=True)
class Setting:
    """One way to train, the same for both programs. Each GPU takes one micro batch a step."""

    shape: str
    """Name of a config in conf/model."""
    precision: str
    """One of PRECISIONS."""
    micro_batch: int
    """Sequences a step on each GPU."""
    gpus: int
    steps: int
    """The first WARMUP_STEPS of them don't count."""
    activation_checkpoint: str = "none"
    document_mask: bool = False
    """Attention stays inside documents; only ours can without a tokenizer."""
    seq_len: int = 4096
    layout: Layout = field(default_factory=Layout)
    """How our side divides the work; the rival has FSDP alone."""


@dataclass(frozen=True)
class Measurement:
    """One run of one program."""

    program: str
    """OURS or RIVAL."""
    setting: Setting
    rates: list[float] = field(default_factory=list)
    """Tokens/s/GPU of each whole window after the warm-up; empty where the run failed."""
    error: str = ""
    """Why it failed, in a few words."""
    parameters: int = 0
    flops_per_token: int = 0
    """Of forward and backward pass, by FLOPS_FORMULA of `harness.model.family`."""
    peak_memory_bytes: int | None = None
    """Most device memory in use on any of the GPUs, by NVML."""
    first_step_seconds: float | None = None
    """From the start of the program to the end of its first step, compilation included."""
    seconds: float = 0.0
    """From the start of the program until its memory was free again."""
    device: int | None = None
    """Number of the GPU that it had for itself while another program ran on another; None: nothing else ran."""
    versions: dict[str, str] = field(default_factory=dict)
    log_tail: list[str] = field(default_factory=list)
    """Last lines of the log of a run that failed."""

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the windows, for each GPU."""
        return statistics.median(self.rates) if self.rates else None

    def mfu(self, peak: float | None) -> float | None:
        """Share of `peak` FLOP/s; None where one of the two is not known."""
        rate = self.tokens_per_second
        return None if rate is None or peak is None else rate * self.flops_per_token / peak

    def as_dict(self) -> dict[str, Any]:
        """For the raw file."""
        return {**dataclasses.asdict(self), "tokens_per_second_per_gpu": self.tokens_per_second}


def window_rates(marks: list[tuple[int, int, float]], setting: Setting) -> list[float]:
    """Tokens/s/GPU of each whole window after the warm-up, from (step, tokens so far, time in s) of every step."""
    at = {step: (tokens, time) for step, tokens, time in marks}
    rates = []
    for start in range(WARMUP_STEPS, setting.steps - WINDOW_STEPS + 1, WINDOW_STEPS):
        (first, begin), (last, end) = at[start], at[start + WINDOW_STEPS]
        rates.append((last - first) / (end - begin) / max(1, setting.gpus))
    return rates


def shape_config(shape: str) -> ModelConfig:
    """The model of conf/model/`shape`. Raises ConfigError."""
    needed = [f"run.name={shape}", "train.steps=1", "train.global_batch_size=1"]
    return compose([f"model={shape}", *needed]).model
