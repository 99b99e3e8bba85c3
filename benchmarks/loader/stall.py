"""Trainers over storage that goes cold and then away: what reading ahead saves. Root, FUSE, three minutes.

Three trainers, each over a mount of its own of the same files, take four sequences every quarter of a second. After 20 s a
tenth of the shards are evicted for a minute: the first read of each of their blocks takes 2 s. After 90 s the storage goes
away for a minute: for half of it reads hang, then they fail.
"""

import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.loader.consume import STEP_SECONDS
from benchmarks.loader.curves import Curve, draw, lost, rate, waited
from benchmarks.loader.shape import write_shards
from benchmarks.loader.table import machine
from benchmarks.processes import repository

SHARDS, TOKENS = 100, 1 << 27
EVICTED = 0.1
FIRST_READ_SECONDS = 2.0
USUAL = (5.0, 20.0)
COLD = (20.0, 80.0)
OUTAGE = (90.0, 150.0)
FAILING = 120.0
"""From here on reads fail instead of hanging."""
END = 180.0
SHORT_SECONDS = 20

KINDS = {
    "harness": ("harness, default read-ahead (256 MiB)", "#1a6fb5"),
    f"harness:{SHORT_SECONDS}": (f"harness, read-ahead of only {SHORT_SECONDS} s", "#3a9a5b"),
    "memmap": ("memmap + DataLoader (2 workers)", "#b5402a"),
}


@dataclass
class _Trainer:
    """One trainer and its mount."""

    kind: str
    control: Path
    log: Path
    process: "subprocess.Popen[bytes]"
    failed: bool = field(default=False)

    def say(self, **content: Any) -> None:
        """Tell its file system how to behave."""
        temporary = self.control.with_suffix(".tmp")
        temporary.write_text(
            json.dumps({"evicted": [], "first_read_seconds": FIRST_READ_SECONDS, "outage": "", **content})
        )
        os.replace(temporary, self.control)


def compare(folder: Path) -> int:
    """Run all three, write stall.png and stall.md into `folder`; returns an exit code."""
    if problem := missing():
        print(problem, file=sys.stderr)
        return 2
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="harness-stall-") as name, ExitStack() as stack:
        scratch = Path(name)
        files = scratch / "files"
        _make_files(files)
        begin = time.time() + 5
        trainers = [stack.enter_context(_trainer(kind, scratch / f"{i}", files, begin)) for i, kind in enumerate(KINDS)]
        _play(trainers, begin)
        curves = []
        for trainer in trainers:
            trainer.failed = _ended(trainer.process)
            lines = [tuple(map(float, line.split())) for line in trainer.log.read_text().splitlines()]
            label, color = KINDS[trainer.kind]
            steps, waits = [moment - begin for moment, _ in lines], [seconds for _, seconds in lines]
            curves.append(Curve(label, steps, waits, color, trainer.failed))
        draw(
            curves,
            rate(curves[0].steps, *USUAL),
            [(*COLD, "10% of the shards cold, 2 s a first read"), (*OUTAGE, "storage gone: hangs, then EIO")],
            END,
            folder / "stall.png",
        )
        report = "\n".join(_report(trainers, curves, begin))
    (folder / "stall.md").write_text(report)
    print(report)
    return 0


def missing() -> str | None:
    """What this machine lacks."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists() or not shutil.which("fusermount3"):
        return "--stall mounts a file system of its own: it needs root, /dev/fuse and fuse3 (apt-get install fuse3)"
    absent = [name for name in ("mfusepy", "matplotlib", "torch") if importlib.util.find_spec(name) is None]
    return f"--stall needs {', '.join(absent)}: pip install -e '.[benchmark]'" if absent else None


def _make_files(folder: Path) -> None:
    from harness.data.checksums import write_checksums

    print("writing token files", file=sys.stderr, flush=True)
    for path in write_shards(folder, SHARDS, TOKENS):
        write_checksums(path)


@contextmanager
def _trainer(kind: str, folder: Path, files: Path, begin: float) -> Iterator[_Trainer]:
    """Mount and start; ends both."""
    mount, control, log = folder / "mount", folder / "control.json", folder / "steps"
    mount.mkdir(parents=True)
    trainer = _Trainer(kind, control, log, None)  # type: ignore[arg-type]
    trainer.say()
    storage = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.loader.tiered_fs", files, mount, control],
        cwd=repository(),
        stderr=subprocess.DEVNULL,
    )
    try:
        while not os.path.ismount(mount):
            if storage.poll() is not None:
                raise SystemExit("the file system did not start")
            time.sleep(0.05)
        with (folder / "output").open("wb") as output:
            trainer.process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.loader.consume", kind, mount, log, "--until", str(begin + END)],
                cwd=repository(), stdout=output, stderr=output,
            )  # fmt: skip
        yield trainer
    finally:
        trainer.say()
        if trainer.process is not None and trainer.process.poll() is None:
            trainer.process.kill()
            trainer.process.wait()
        subprocess.run(["fusermount3", "-uz", mount], check=False)
        storage.terminate()
        storage.wait()


def _play(trainers: list[_Trainer], begin: float) -> None:
    """The timeline."""
    evicted = [f"{number:05d}.ds" for number in random.Random(0).sample(range(SHARDS), int(EVICTED * SHARDS))]
    for moment, content in (
        (COLD[0], {"evicted": evicted}),
        (COLD[1], {}),
        (OUTAGE[0], {"outage": "hang"}),
        (FAILING, {"outage": "error"}),
        (OUTAGE[1], {}),
        (END, {}),
    ):
        time.sleep(max(0.0, begin + moment - time.time()))
        print(f"{moment:.0f} s: {content or 'all well'}", file=sys.stderr, flush=True)
        for trainer in trainers:
            trainer.say(**content)


def _ended(process: "subprocess.Popen[bytes]") -> bool:
    """Wait for the trainer; whether it failed."""
    try:
        return process.wait(timeout=30) != 0
    except subprocess.TimeoutExpired:
        return True


def _report(trainers: list[_Trainer], curves: list[Curve], begin: float) -> Iterator[str]:
    yield f"    {machine()}; {SHARDS} shards, {TOKENS:,} tokens, a step of {STEP_SECONDS:g} s"
    yield ""
    yield (
        "| trainer | waits for data, usually | while 10% is cold | steps lost in the outage of 60 s | steps went on for | "
        "running again after | ended |"
    )
    yield "|---|---|---|---|---|---|---|"
    for curve in curves:
        inside = [moment for moment in curve.steps if OUTAGE[0] <= moment < OUTAGE[1] + 1]
        gap = _longest_gap(curve.steps, OUTAGE[0] - 2, END)
        onwards = f"{gap[0] - OUTAGE[0]:.0f} s" if gap[1] - gap[0] > 5 else "all of it"
        again = f"{max(0.0, gap[1] - OUTAGE[1]):.1f} s" if gap[1] - gap[0] > 5 else "-"
        if curve.failed:
            onwards, again = f"{max(0.0, (inside or [OUTAGE[0]])[-1] - OUTAGE[0]):.0f} s", "never"
        yield (
            f"| {curve.label} | {waited(curve, *USUAL):.2%} | {waited(curve, *COLD):.2%} | {lost(curve.steps, USUAL, *OUTAGE):.0%} | {onwards} | "
            f"{again} | {'bus error' if curve.failed else 'at its end'} |"
        )
    yield ""
    for trainer in trainers:
        if trainer.kind != "memmap":
            yield from _story(trainer, begin)


def _longest_gap(steps: list[float] | Any, begin: float, end: float) -> tuple[float, float]:
    """The longest time without a step that begins after `begin`."""
    inside = [moment for moment in steps if begin <= moment <= end]
    gaps = [(after - before, before, after) for before, after in pairwise(inside)]
    longest = max(gaps, default=(0.0, begin, begin))
    return longest[1], longest[2]


def _story(trainer: _Trainer, begin: float) -> Iterator[str]:
    """What the ledger and the counters say."""
    yield f"Ledger of {KINDS[trainer.kind][0]}:"
    yield ""
    events = trainer.log.with_suffix(".events")
    for line in events.read_text().splitlines() if events.exists() else []:
        event = json.loads(line)
        first = f"first {Path(event['file']).name} at {event['offset']}"
        reason = (
            event["why"].rpartition(": ")[2]
            if event["phase"] == "begin"
            else f"the last from {Path(event['served_by']).name}"
        )
        yield (
            f"    {event['time'] - begin:6.1f} s  step {event['step']}  {event['event']} {event['phase']}: "
            f"{event['reads']} reads of {event['source']}, {first}, {event['seconds']:.1f} s, {reason}"
        )
    yield ""
    counts = json.loads(trainer.log.with_suffix(".counts").read_text())
    yield f"Reads that failed: {counts['read_errors']:.0f}; slow: {counts['slow_reads']:.0f}."
    yield ""
