"""How long a run stands still after a failure: `python -m benchmarks.recovery` (root on Debian with Slurm; about 12 minutes).

Brings up the development cluster with four nodes, trains exp=tiny on three of them, breaks something again and again, and
takes the time from the blow to the next finished step of training. Everything in between counts: noticing, requeueing,
starting Python and torch, finding the checkpoint, reading it, one step.
"""

import argparse
import os
import platform
import pydoc_data.topics
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.run.folder import RunFolder
from slurm.devcluster import cluster, daemons, nodes
from slurm.devcluster.layout import Layout, Settings

RUN = "recovery"
STEPS_BETWEEN = 14
"""Steps that the run makes between two blows: past a checkpoint, which comes every ten."""
PATIENCE_SECONDS = 180.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="blows of each kind (default 5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="harness-recovery-") as folder:
        layout = cluster.up(Path(folder) / "slurm", Settings(nodes=4))
        try:
            bench = Bench(layout, Path(folder))
            bench.launch()
            blows: dict[str, Callable[[], None]] = {
                "kill -9 of a rank": bench.kill_rank,
                "kill -9 of an agent": bench.kill_agent,
                "power loss of a node": bench.kill_node,
            }
            results = {name: bench.measure(name, blow, options.repeats) for name, blow in blows.items()}
        finally:
            cluster.down(Path(folder) / "slurm")
    print(render(results, layout.settings.slurmd_timeout))
    return 0


class Bench:
    """One long run on the cluster, and what is done to it."""

    def __init__(self, layout: Layout, folder: Path) -> None:
        self._layout, self._folder = layout, folder
        self._env = daemons.environment(layout)
        self._run = RunFolder(folder / "runs" / RUN)

    def launch(self) -> None:
        """Prepare a little text and start the run; far more steps than the benchmark will need."""
        text, tokens = self._folder / "topics.txt", self._folder / "tokens"
        text.write_text("\n\n".join(pydoc_data.topics.topics.values()))
        self._python("harness.data", "prepare", "--input", str(text), "--output", str(tokens), "--format", "text")
        self._python(
            "harness.launch", "+exp=tiny", f"run.name={RUN}", f"runs_dir={self._folder / 'runs'}", "cluster=slurm",
            "cluster.gpus_per_node=0", "cluster.nodes=3", "cluster.ranks_per_node=1", "train.steps=100000",
            "train.micro_batch_size=2", "train.global_batch_size=12", "data.seq_len=128", "checkpoint.every_steps=10",
            f"data.sources.demo.path={tokens}",
        )  # fmt: skip

    def measure(self, name: str, blow: Callable[[], None], repeats: int) -> list[float]:
        """Seconds from each blow to the next step that training finished after it."""
        seconds = []
        for _ in range(repeats):
            self._wait_for_steps(STEPS_BETWEEN)
            starts = len(self._starts())
            struck = time.time()
            blow()
            self._wait(lambda starts=starts: len(self._starts()) > starts)  # type: ignore[misc]
            resumed = self._starts()[-1]
            self._wait(lambda resumed=resumed: self._step_after(resumed) is not None)  # type: ignore[misc]
            seconds.append((self._step_after(resumed) or 0.0) - struck)
            print(f"{name}: {seconds[-1]:.1f} s", file=sys.stderr, flush=True)
            self._heal()
        return seconds

    def kill_rank(self) -> None:
        os.kill(self._pid(self._nodes()[1], "harness.train"), signal.SIGKILL)

    def kill_agent(self) -> None:
        os.kill(self._pid(self._nodes()[1], "harness.agent "), signal.SIGKILL)

    def kill_node(self) -> None:
        nodes.power_off(self._layout, self._nodes()[1])

    def _heal(self) -> None:
        """All nodes up, and none of them held against the run, so that the next blow finds what this one found."""
        for node in self._layout.nodes:
            if nodes.slurmd_of(self._layout, node) is None:
                nodes.power_on(self._layout, node)
        self._run.excluded_path.unlink(missing_ok=True)

    def _nodes(self) -> list[str]:
        return list(self._events("attempt_start")[-1]["nodes"])

    def _pid(self, node: str, part: str) -> int:
        found = nodes.pids(self._layout, node)
        return next(pid for pid, command in found.items() if part in command and "srun" not in command)

    def _events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self._run.events() if event["event"] == name]

    def _starts(self) -> list[float]:
        return [event["time"] for event in self._events("train_start")]

    def _step_after(self, moment: float) -> float | None:
        """When the first step after `moment` was finished."""
        return next((record["time"] for record in self._run.metrics() if record["time"] > moment), None)

    def _wait_for_steps(self, count: int) -> None:
        self._wait(lambda: bool(self._starts()))
        started = self._starts()[-1]
        self._wait(lambda: sum(record["time"] > started for record in self._run.metrics()) >= count)

    def _wait(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not condition():
            if time.monotonic() > deadline:
                raise SystemExit(
                    f"nothing happened for {PATIENCE_SECONDS:.0f} s; events:\n{self._run.events_path.read_text()}"
                )
            time.sleep(0.1)

    def _python(self, *arguments: str) -> None:
        subprocess.run([sys.executable, "-m", *arguments], env=self._env, check=True, capture_output=True)


def render(results: dict[str, list[float]], slurmd_timeout: int) -> str:
    """The table, with what it was measured on."""
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores for all nodes together; Python {platform.python_version()}, "
        f"torch {version('torch')}, SlurmdTimeout {slurmd_timeout} s, three nodes, one rank each",
        "",
        "| failure | median s | min s | max s | n |",
        "|---|---|---|---|---|",
    ]
    for name, seconds in results.items():
        lines.append(
            f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} | {max(seconds):.1f} | {len(seconds)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
