"""Launching small real runs in tests, and waiting for what they do."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.run.folder import RunFolder

SMALL = (
    "+exp=tiny",
    "train.steps=40",
    "train.micro_batch_size=2",
    "train.global_batch_size=12",
    "data.seq_len=128",
    "schedule.decay_steps=10",
    "checkpoint.every_steps=10",
    "checkpoint.keep=null",
)
"""Overrides of a run that takes about 15 s of training on two cores, three ranks."""
QUICK = (
    "model.hidden_size=32",
    "model.intermediate_size=64",
    "model.num_hidden_layers=2",
    "model.num_attention_heads=2",
    "model.num_key_value_heads=1",
    "data.seq_len=64",
    "monitor.mode=off",
)
"""Overrides on top for runs whose steps take milliseconds, where the restart is the matter."""
SLURM = (
    "cluster=slurm",
    "cluster.gpus_per_node=0",
    "cluster.ranks_per_node=1",
    "cluster.nodes=3",
    "cluster.time=00:30:00",
)


@dataclass(frozen=True)
class Bench:
    """Where runs are launched from: their folder, their data and their environment."""

    runs_dir: Path
    tokens: Path
    env: dict[str, str]

    def launch(self, name: str, *overrides: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
        """Run `harness.launch` with these overrides on top of SMALL."""
        command = [
            sys.executable, "-m", "harness.launch", *SMALL, f"run.name={name}", f"runs_dir={self.runs_dir}",
            f"data.sources.demo.path={self.tokens}", *overrides,
        ]  # fmt: skip
        result = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300)
        if check and result.returncode:
            raise AssertionError(f"launch failed with {result.returncode}:\n{result.stdout}\n{result.stderr}")
        return result

    def run(self, name: str) -> "Run":
        return Run(RunFolder(self.runs_dir / name))


@dataclass(frozen=True)
class Run:
    """A run that was launched."""

    folder: RunFolder

    def losses(self) -> dict[int, float]:
        """Loss by step; raises AssertionError where a step stands twice in metrics.jsonl."""
        records = self.folder.metrics()
        losses = {record["step"]: record["loss"] for record in records}
        assert len(losses) == len(records), "a step stands twice in metrics.jsonl"
        return losses

    def step(self) -> int:
        return max((record["step"] for record in self.folder.metrics()), default=0)

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.folder.events() if event["event"] == name]

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        self.wait(lambda: self.step() >= step, f"step {step}", seconds)

    def wait_for_end(self, seconds: float = 240) -> None:
        """Until the newest attempt says that all steps are done."""
        self.wait(lambda: bool(self.events("finished")), "the end of the run", seconds)
        self.wait(
            lambda: [e["state"] for e in self.events("attempt_end")][-1:] == ["finished"], "the agent's last word", 30
        )

    def wait(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"{what} did not come within {seconds:.0f} s\n{self.describe()}")
            time.sleep(0.2)

    def describe(self) -> str:
        """Events and the ends of all logs, for a failure's message."""
        events = "\n".join(str(event) for event in self.folder.events())
        logs = [*sorted(self.folder.attempts_dir.glob("*/*.log")), *sorted(self.folder.submit_dir.glob("*log*"))]
        tails = "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-1500:]}" for path in logs)
        return f"{events}\n{tails}"


def clean_env(extra: dict[str, str] | None = None) -> dict[str, str]:
    """This process's environment without variables that a test runner or a job may have left."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "SUBMITIT_", "OMP_"))}
    return {**inherited, **(extra or {})}
