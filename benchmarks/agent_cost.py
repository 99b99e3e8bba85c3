"""What watching costs: CPU and memory of a node's exporter with 8 ranks, and the price of a write to a rank's board.

    python -m benchmarks.agent_cost [--seconds 60]

Runs the exporter with all collectors in a process of its own, as an agent would, while 8 processes write to their boards
as trainers do. Scrapes it every 5 s (Prometheus' usual interval is 15 s) and prints what exporter and canary cost.
"""

import argparse
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
import timeit
import urllib.request
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path

import psutil
from tqdm import tqdm

from harness.observe.board import Board, board_path
from harness.observe.reads import BoardReads
from harness.run.folder import Ledger

RANKS = 8
SCRAPE_SECONDS = 5.0
SOURCES = 8
READS_PER_SECOND = 50
"""Of each rank; one of a 3B model reads a few sequences a second."""
TARGET_CPU, TARGET_BYTES = 0.01, 100e6


def serve(folder: Path, pipe: Connection) -> None:
    """The agent's side: the exporter with every collector, until told to end."""
    from harness.observe.boards import BoardsCollector
    from harness.observe.canary import CanaryCollector, CanaryMount
    from harness.observe.collector import Background
    from harness.observe.exporter import Exporter
    from harness.observe.node import AgentCostCollector, FilesystemCollector, PressureCollector
    from harness.observe.nvml import GpuCollector
    from harness.observe.run_info import RunInfo, RunInfoCollector
    from harness.observe.targets import TargetRegistration
    from harness.observe.xid import XidCollector

    canary = CanaryCollector([CanaryMount(str(folder), folder, [folder / "shard.ds"])], "node")
    exporter = Exporter(
        [
            BoardsCollector(folder / "boards"),
            RunInfoCollector(RunInfo("run", "commit", "config", str(RANKS), "none"), time.time(), 0, {}),
            Background(GpuCollector(), 5.0),
            XidCollector(),
            Background(canary, 10.0),
            Background(FilesystemCollector(str(folder)), 10.0),
            Background(PressureCollector(), 10.0),
            AgentCostCollector(),
        ],
        "127.0.0.1",
        0,
    )
    registration = TargetRegistration(folder / "targets", exporter.address, run="run", attempt=0, node="node")
    time.sleep(2.0)  # every background collector has been round once
    pipe.send((exporter.address, canary.child_pid))
    pipe.recv()
    registration.close()
    exporter.close()


def train(folder: Path, rank: int, stop: Event) -> None:
    """A trainer's side: steps and reads as a rank reports them."""
    board = Board.open_for_write(board_path(folder / "boards", rank))
    board.set("pid", os.getpid())
    reads = BoardReads(board, Ledger(folder / "events.jsonl", 0))
    reads.register([("/data", f"source-{number}") for number in range(SOURCES)])
    count = 0
    while not stop.wait(1 / READS_PER_SECOND):
        count += 1
        reads.started(0, count % SOURCES)
        reads.finished(0, count % SOURCES, 0.001, 16384, slow=False)
        board.set("last_step_time", time.time())
        board.add("tokens_total", 4096)


@dataclass
class Cost:
    """CPU share of a core per scrape interval and over all of them, and resident bytes, of one process."""

    intervals: list[float]
    whole: float
    resident: int


def measure(address: tuple[str, int], pids: dict[str, int], seconds: float) -> tuple[dict[str, Cost], list[str]]:
    """The cost of each process while /metrics is scraped, and the lines of the last page."""
    processes = {name: psutil.Process(pid) for name, pid in pids.items()}
    marks: list[tuple[float, dict[str, float]]] = []
    page: list[str] = []
    for _ in tqdm(range(max(1, round(seconds / SCRAPE_SECONDS))), desc="scraping", unit="scrape"):
        marks.append((time.monotonic(), {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}))
        with urllib.request.urlopen("http://{}:{}/metrics".format(*address)) as answer:
            page = answer.read().decode().splitlines()
        time.sleep(max(0.0, marks[-1][0] + SCRAPE_SECONDS - time.monotonic()))
    marks.append((time.monotonic(), {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}))

    def share(name: str, start: int, end: int) -> float:
        return (marks[end][1][name] - marks[start][1][name]) / (marks[end][0] - marks[start][0])

    costs = {
        name: Cost(
            [share(name, index, index + 1) for index in range(len(marks) - 1)],
            share(name, 0, -1),
            process.memory_info().rss,
        )
        for name, process in processes.items()
    }
    return costs, page


def nanoseconds_per_call(folder: Path) -> dict[str, float]:
    """CPU time, so that a busy machine tells the same; median of 7 runs of 200,000 calls each."""
    board = Board.open_for_write(board_path(folder / "timing", 0))
    calls = {
        "Board.set": lambda: board.set("loss", 2.5),
        "Board.add": lambda: board.add("tokens_total", 1),
        "Board.observe": lambda: board.observe("read", 0.004, 3),
    }
    number = 200_000
    return {
        name: statistics.median(timeit.repeat(call, timer=time.thread_time, number=number, repeat=7)) / number * 1e9
        for name, call in calls.items()
    }


def report(costs: dict[str, Cost], page: list[str]) -> None:
    """The table, and how it stands to the target. CPU is counted in ticks of 10 ms: 0.2% of one interval."""
    print(f"{'':8} {'CPU of a core':>14} {'median interval':>16} {'worst':>7} {'resident':>10}")
    for name, cost in costs.items():
        median, worst = statistics.median(cost.intervals), max(cost.intervals)
        print(f"{name:8} {cost.whole:14.2%} {median:16.2%} {worst:7.2%} {cost.resident / 1e6:7.1f} MB")
    cpu, resident = (sum(getattr(cost, field) for cost in costs.values()) for field in ("whole", "resident"))
    verdict = "met" if cpu < TARGET_CPU and resident < TARGET_BYTES else "MISSED"
    print(f"{'total':8} {cpu:14.2%} {'':24} {resident / 1e6:7.1f} MB   target: under 1% and 100 MB: {verdict}")
    series = [line for line in page if not line.startswith("#")]
    off = [
        line.split('"')[1]
        for line in series
        if line.startswith("harness_exporter_collector_enabled") and line.endswith(" 0.0")
    ]
    print(
        f"{len(series)} series, scraped every {SCRAPE_SECONDS:.0f} s; collectors without a device here: {', '.join(off) or 'none'}"
    )


def cpu_model() -> str:
    """The processor's name as Linux gives it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to scrape (default 60)")
    seconds = parser.parse_args().seconds
    spawn = multiprocessing.get_context("spawn")
    folder = Path(tempfile.mkdtemp(prefix="agent-cost-"))
    (folder / "shard.ds").write_bytes(os.urandom(1 << 20))
    stop = spawn.Event()
    ours, theirs = spawn.Pipe()
    trainers = [spawn.Process(target=train, args=(folder, rank, stop)) for rank in range(RANKS)]
    agent = spawn.Process(target=serve, args=(folder, theirs))
    try:
        print(
            f"{cpu_model()}, {os.cpu_count()} cores; Linux {platform.release()}; Python {platform.python_version()}; "
            f"prometheus_client {version('prometheus_client')}; nvidia-ml-py {version('nvidia-ml-py')}"
        )
        for name, cost in nanoseconds_per_call(folder).items():
            print(f"{name}: {cost:.0f} ns of CPU per call")
        for process in (*trainers, agent):
            process.start()
        address, canary_pid = ours.recv()
        pids = {"exporter": agent.pid or 0, "canary": canary_pid}
        report(*measure(address, pids, seconds))
    finally:
        stop.set()
        if agent.is_alive():
            ours.send("end")
        for process in (*trainers, agent):
            if process.pid is not None:
                process.join(timeout=10)
                process.kill()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
