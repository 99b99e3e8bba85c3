"""Our side: a run through `python -m harness.launch`, ended after the last step that counts instead of saved."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import gpus
from benchmarks.processes import alive, end_group, refusal, start, tail, watch, why_failed
from benchmarks.throughput.settings import OURS, Measurement, Setting, shape_config, window_rates
from benchmarks.throughput.tokens import overrides as token_overrides
from benchmarks.throughput.tokens import write_random_tokens
from harness.model.family import flops_per_token, parameters
from harness.run.folder import RunFolder

NEVER = 1_000_000_000
"""Steps: more than any run does, so that no checkpoint is written."""
FAILED_EVENTS = ("rank_failed", "attempt_end", "gave_up")
PRECISION_OVERRIDES = {
    "bf16": ["train.precision=bf16"],
    "fp8": ["train.precision=fp8", "train.fp8_recipe=tensorwise"],
    "fp8_rowwise": ["train.precision=fp8", "train.fp8_recipe=rowwise"],
}


def overrides(setting: Setting, tokens: Path, runs_dir: Path, name: str) -> list[str]:
    """What is given to `harness.launch`. All else is as a user gets it: agent, metrics and log are on."""
    return [
        "cluster=local",
        f"cluster.gpus_per_node={setting.gpus}",
        "cluster.max_restarts_without_progress=1",
        f"model={setting.shape}",
        f"model.max_position_embeddings={max(setting.seq_len, shape_config(setting.shape).max_position_embeddings)}",
        f"data.seq_len={setting.seq_len}",
        *token_overrides(tokens),
        f"data.document_mask={str(setting.document_mask).lower()}",
        *PRECISION_OVERRIDES[setting.precision],
        f"train.activation_checkpoint={setting.activation_checkpoint}",
        *setting.layout.overrides(setting.micro_batch, setting.gpus),
        f"train.steps={NEVER}",
        f"checkpoint.every_steps={NEVER}",
        f"runs_dir={runs_dir}",
        f"run.name={name}",
    ]


async def measure(setting: Setting, folder: Path, seconds: float, devices: Sequence[int]) -> Measurement:
    """One run of at most `seconds` on these GPUs, with all its files in `folder`.

    Why it failed is in its `error`; nothing is raised."""
    model = shape_config(setting.shape)
    tokens = write_random_tokens(folder / "tokens", model.vocab_size)
    began, clock = time.monotonic(), time.time()
    launch_log, run = folder / "launch.log", RunFolder(folder / OURS)
    command = [sys.executable, "-m", "harness.launch", *overrides(setting, tokens, folder, OURS)]
    process = start(command, launch_log, gpus.environment(devices))

    def ended() -> str | None:
        if process.poll():
            return refusal(launch_log)
        if any(event["event"] in FAILED_EVENTS for event in run.events()) or not alive(process):
            return why_failed(_log(run, launch_log))
        return "" if run.last_step() >= setting.steps else None

    try:
        error = await watch(ended, began + seconds)
    finally:
        end_group(process)
    lines = run.metrics()
    if error is None:
        error = f"not done after {seconds:.0f} s, at step {run.last_step()} of {setting.steps}"
    if error:
        return Measurement(OURS, setting, error=error, log_tail=tail(_log(run, launch_log)))
    return Measurement(
        OURS,
        setting,
        rates=window_rates([(line["step"], line["tokens"], line["time"]) for line in lines], setting),
        parameters=parameters(model).total,
        flops_per_token=flops_per_token(model, setting.seq_len),
        first_step_seconds=lines[0]["time"] - clock,
        versions=dict(run.record()["versions"]),
    )


def _log(run: RunFolder, launch_log: Path) -> Path:
    """Where the ranks print, or the launcher before there are ranks."""
    logs = sorted(run.attempts_dir.glob("*/*.log")) or sorted(run.submit_dir.glob("*log*"))
    return logs[-1] if logs else launch_log
