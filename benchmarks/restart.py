"""What compiling costs, and that a restart does not pay it again: `python -m benchmarks.restart [--gpus N]` (2 minutes).

Starts a run with empty compile caches, lets it train, kills a rank with SIGKILL, and reads from the run's ledger what the
first step took before and after (`first_step`), beside an ordinary step. On CPU (--gpus 0) nothing is compiled, so both
first steps cost little more than an ordinary one.
"""

import argparse
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from subprocess import Popen
from typing import Any

from benchmarks.gpus import Gpus, NoGpus, environment, visible
from benchmarks.processes import alive, end_group, refusal, run_watched, start, tail, watch
from benchmarks.throughput.ours import overrides
from benchmarks.throughput.settings import Setting
from benchmarks.throughput.tokens import write_random_tokens
from harness.run.folder import RunFolder

RUN = "restart"
VOCAB = 4096
"""Small, so that the figure is that of the layers: the head's kernels are few."""
WARMUP_STEPS = 5
"""Steps after the first that don't count as ordinary ones."""
SECONDS = 300.0
"""For each of the two starts."""


class Failed(Exception):
    """The run did not do what was to be measured; the message has the end of its log."""


@dataclass(frozen=True)
class Found:
    """Seconds."""

    cold: float
    """First step with empty caches."""
    warm: float
    """First step after the restart."""
    step: float
    """Median of the ordinary steps before the kill."""
    until_cold: float
    """From the launch to the end of the first step."""
    until_warm: float
    """From the kill to the end of the first step."""


def setting(gpus: int, steps: int) -> Setting:
    """A model of a billion parameters on GPUs, the smallest on CPU."""
    if gpus:
        return Setting("llama_1b", "bf16", micro_batch=4, gpus=gpus, steps=steps, document_mask=True)
    return Setting("tiny", "bf16", micro_batch=1, gpus=0, steps=steps, document_mask=True, seq_len=256)


def caches(folder: Path) -> dict[str, str]:
    """What points the compilers to caches of this run's own, which are empty."""
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


async def measure(gpus: int, steps: int, folder: Path, devices: list[int]) -> Found:
    """Launch, kill, wait for the restart. Raises Failed."""
    tokens, run, log = write_random_tokens(folder / "tokens", VOCAB), RunFolder(folder / RUN), folder / "launch.log"
    given = [*overrides(setting(gpus, steps), tokens, folder, RUN), f"model.vocab_size={VOCAB}"]
    launched = time.time()
    command = [sys.executable, "-m", "harness.launch", *given]
    process = start(command, log, {**environment(devices), **caches(folder)})
    try:
        await _until(lambda: run.last_step() >= steps, process, run, log, kills=0)
        ordinary = [line["step_seconds"] for line in run.metrics() if line["step"] > 1 + WARMUP_STEPS]
        killed = time.time()
        os.kill(ranks(run)[-1], signal.SIGKILL)
        await _until(lambda: len(first_steps(run)) == 2, process, run, log, kills=1)
    finally:
        end_group(process)
    cold, warm = first_steps(run)
    return Found(
        cold=cold["seconds"],
        warm=warm["seconds"],
        step=statistics.median(ordinary),
        until_cold=cold["time"] - launched,
        until_warm=warm["time"] - killed,
    )


async def _until(reached: Callable[[], bool], process: "Popen[bytes]", run: RunFolder, log: Path, kills: int) -> None:
    """Wait for it. Raises Failed where the run ends, fails more often than it was killed, or takes too long."""

    def look() -> bool | None:
        if reached():
            return True
        events = [event["event"] for event in run.events()]
        over = process.poll() or not alive(process) or {"attempt_end", "gave_up"} & set(events)
        return False if over or events.count("rank_failed") > kills else None

    found = await watch(look, time.monotonic() + SECONDS)
    if not found:
        logs = sorted(run.attempts_dir.glob("*/*.log"))
        said = "\n".join(tail(logs[-1])) if logs else refusal(log)
        raise Failed(f"{'the run failed' if found is False else f'not done after {SECONDS:.0f} s'}:\n{said}")


def ranks(run: RunFolder) -> list[int]:
    """Process ids of the run's ranks. They lead sessions of their own, so they are known by what they were started as."""
    wanted = b"\0".join([b"-m", b"harness.train", os.fsencode(run.path), b""])
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "cmdline").read_bytes().endswith(wanted):
                found.append(int(entry.name))
        except OSError:
            continue  # it has just gone
    return sorted(found)


def first_steps(run: RunFolder) -> list[dict[str, Any]]:
    """The ledger's events of first steps, in their order."""
    return [event for event in run.events() if event["event"] == "first_step"]


def render(found: Found, where: str) -> str:
    """The table, with what it was measured on."""
    lines = [
        f"    {where}; Python {platform.python_version()}, torch {version('torch')}",
        "",
        "| start | first step s | until it was done s |",
        "|---|---|---|",
        f"| launch, empty caches | {found.cold:.2f} | {found.until_cold:.1f} |",
        f"| after kill -9 of a rank | {found.warm:.2f} | {found.until_warm:.1f} |",
        "",
        f"- An ordinary step takes {found.step:.3f} s.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=__doc__)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs of this machine to train on; 0: CPU (default 1)")
    parser.add_argument("--steps", type=int, default=30, help="before the kill (default 30)")
    options = parser.parse_args()
    if options.gpus < 0:
        parser.error(f"--gpus {options.gpus}: must be at least 0")
    if options.steps < WARMUP_STEPS + 2:
        parser.error(
            f"--steps {options.steps}: must be at least {WARMUP_STEPS + 2}; the first {WARMUP_STEPS + 1} don't count"
        )
    try:
        gpus = Gpus(visible(options.gpus)) if options.gpus else None
    except NoGpus as error:
        print(error, file=sys.stderr)
        return 2
    where = f"{options.gpus} x {gpus.names[0]}" if gpus else f"{platform.machine()}, {os.cpu_count()} cores, no GPU"
    with tempfile.TemporaryDirectory(prefix="harness-restart-", ignore_cleanup_errors=True) as name:
        try:
            found = run_watched(measure(options.gpus, options.steps, Path(name), gpus.devices if gpus else []))
        except Failed as failure:
            print(failure, file=sys.stderr)
            return 1
    print(render(found, where))
    return 0


if __name__ == "__main__":
    sys.exit(main())
