"""`python -m benchmarks.soak` (root on Debian with Slurm): 30 minutes of random injuries to runs that nobody looks after.

Brings up the development cluster, trains a small model once undisturbed, then trains it again and again while a random
injury comes every few seconds, until the time is up. Each run must come to its end by itself, with the losses of the
undisturbed one, bit for bit. `--seed` repeats the injuries of an earlier soak.
"""

import argparse
import os
import platform
import pydoc_data.topics
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from benchmarks.soak.injuries import INJURIES, Victim
from harness.run.folder import RunFolder
from slurm.devcluster import cluster, daemons
from slurm.devcluster.layout import Layout, Settings

STEPS = 300
QUIET_SECONDS = (5.0, 30.0)
"""Between two injuries."""
STUCK_SECONDS = 900.0
"""A run that has not trained for this long, with nothing broken, is stuck."""
ROOM = "64m"
"""Of the file system that the run folders are on, so that it can be filled."""


@dataclass
class Result:
    """What a soak came to."""

    seed: int
    runs: int = 0
    injuries: Counter[str] = field(default_factory=Counter)
    restarts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    """Nodes that Slurm drained, with its reason; they were resumed, as an administrator would."""
    seconds: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="after which no further run is started (default 30)"
    )
    parser.add_argument("--seed", type=int, default=None, help="of the injuries (default: another one each time)")
    parser.add_argument("--only", action="append", choices=list(INJURIES), help="just this injury; may be repeated")
    parser.add_argument(
        "--keep", type=Path, help="copy the run folders and Slurm's logs into this folder before the end"
    )
    options = parser.parse_args()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
    result = Result(random.randrange(10**6) if options.seed is None else options.seed)
    with tempfile.TemporaryDirectory(prefix="harness-soak-") as folder, _cluster(Path(folder)) as layout:
        bench = Soak(layout, Path(folder), result, options.only or list(INJURIES))
        try:
            bench.soak(options.minutes * 60)
        finally:
            print(render(result), flush=True)
            if options.keep:
                subprocess.run(["cp", "-r", str(bench.runs_dir), str(layout.logs), str(options.keep)], check=True)
    return 1 if result.faults else 0


@contextmanager
def _cluster(folder: Path) -> Iterator[Layout]:
    """The cluster, whose nodes see the run folders on a small file system: nodes see what is mounted when they start."""
    runs = folder / "runs"
    runs.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(runs)], check=True)
    try:
        yield cluster.up(folder / "slurm", Settings(nodes=8))
    finally:
        cluster.down(folder / "slurm")
        subprocess.run(["umount", str(runs)], check=False)


class Soak:
    """Trains, injures, compares."""

    def __init__(self, layout: Layout, folder: Path, result: Result, kinds: list[str]) -> None:
        self._layout, self._folder, self._result, self._kinds = layout, folder, result, kinds
        self._chance = random.Random(result.seed)
        self._env = daemons.environment(layout)
        self.runs_dir = folder / "runs"
        self._tokens = folder / "tokens"

    def soak(self, seconds: float) -> None:
        """Until `seconds` have passed and the run that is then under way has ended, or something is wrong."""
        text = self._folder / "topics.txt"
        text.write_text("\n\n".join(pydoc_data.topics.topics.values()))
        self._python(
            "harness.data", "prepare", "--input", str(text), "--output", str(self._tokens), "--format", "text",
            "--vocab-size", "512",
        )  # fmt: skip
        reference = self._train("undisturbed", injured=False)
        began = time.monotonic()
        while time.monotonic() - began < seconds and not self._result.faults:
            name = f"run{self._result.runs}"
            losses = self._train(name, injured=True)
            self._result.runs += 1
            if not self._result.faults and losses != reference:
                different = [step for step in sorted(reference) if losses.get(step) != reference[step]]
                self._result.faults.append(f"{name}: losses differ, first at step {different[:1]}")
        self._result.seconds = time.monotonic() - began

    def _train(self, name: str, injured: bool) -> dict[int, float]:
        self._python(
            "harness.launch", "+exp=tiny", f"run.name={name}", f"runs_dir={self.runs_dir}", "cluster=slurm",
            "cluster.gpus_per_node=0", "cluster.nodes=3", "cluster.ranks_per_node=1", f"train.steps={STEPS}",
            "cluster.time=02:00:00", "train.micro_batch_size=8", "train.global_batch_size=24", "data.seq_len=64",
            "model.vocab_size=512", "model.hidden_size=64", "model.num_hidden_layers=2", "checkpoint.every_steps=10",
            "schedule.decay_steps=20", f"data.sources.demo.path={self._tokens}", "cluster.hang_seconds=30",
            "cluster.max_restarts_without_progress=12", "monitor.mode=off",
        )  # fmt: skip
        run = RunFolder(self.runs_dir / name)
        victim = Victim(self._layout, run, Path(sys.prefix), self._tokens)
        over = threading.Event()
        tormentor = threading.Thread(target=self._torment, args=(victim, over), daemon=True)
        if injured:
            tormentor.start()
        try:
            self._wait_for_end(run, victim)
        finally:
            over.set()
            if injured:
                tormentor.join()
            victim.heal()
        self._result.restarts.update(e["reason"] for e in run.events() if e["event"] == "restart")
        shutil.rmtree(run.checkpoints_dir)  # the next run needs the room
        return {record["step"]: record["loss"] for record in run.metrics()}

    def _torment(self, victim: Victim, over: threading.Event) -> None:
        while not over.wait(self._chance.uniform(*QUIET_SECONDS)):
            name = self._chance.choice(self._kinds)
            print(
                f"{time.strftime('%H:%M:%S')} {victim.run.name} at step {victim.run.last_step()}: {name}",
                file=sys.stderr,
                flush=True,
            )
            try:
                INJURIES[name](victim, self._chance)
                self._result.injuries[name] += 1
            except Exception as error:  # the node was gone already: that is an injury too
                print(f"  not done: {error}", file=sys.stderr, flush=True)
            finally:
                victim.heal()
                for reason in victim.drained():
                    self._result.drained.append(f"after {name}: {reason}")
                    print(f"  drained: {reason}", file=sys.stderr, flush=True)

    def _wait_for_end(self, run: RunFolder, victim: Victim) -> None:
        moved, step = time.monotonic(), -1
        while True:
            names = [event["event"] for event in run.events()]
            if "finished" in names:
                return
            if "gave_up" in names:
                self._result.faults.append(f"{run.name}: gave up: {run.events()[-1].get('why')}")
                return
            if run.last_step() != step:
                moved, step = time.monotonic(), run.last_step()
            if time.monotonic() - moved > STUCK_SECONDS:
                self._result.faults.append(f"{run.name}: no step for {STUCK_SECONDS:.0f} s after step {step}")
                print(victim.slurm("scontrol", "show", "job", victim.job_id), victim.slurm("sinfo"), file=sys.stderr)
                return
            time.sleep(1)

    def _python(self, *arguments: str) -> None:
        done = subprocess.run([sys.executable, "-m", *arguments], env=self._env, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments[:2])} failed:\n{done.stdout}\n{done.stderr}")


def render(result: Result) -> str:
    """The table, with what it was measured on."""
    total = sum(result.injuries.values())
    lines = [
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores for 8 nodes together; Python "
        f"{platform.python_version()}, torch {version('torch')}; seed {result.seed}",
        "",
        f"{result.seconds / 60:.0f} minutes, {result.runs} runs of {STEPS} steps on 3 nodes, {total} injuries, "
        f"{sum(result.restarts.values())} restarts ({', '.join(f'{n} {k}' for k, n in result.restarts.most_common())})",
        "",
        "| injury | times |",
        "|---|---|",
        *(f"| {name} | {count} |" for name, count in result.injuries.most_common()),
        "",
        f"Nodes drained by Slurm: {len(result.drained) or 'none'}",
        "",
        "Losses: "
        + (
            "equal to the undisturbed run's in every run, bit for bit"
            if not result.faults
            else "; ".join(result.faults)
        ),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
