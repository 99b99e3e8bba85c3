"""Starts this node's ranks through torch's elastic agent, as a child process of ours: torch stays out of the agent.

A rank that dies takes the others with it; then the elastic agents of all nodes meet again and start all ranks anew, which
resume from the newest checkpoint. How often they may is decided here by progress (`harness.run.budget`).
"""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from harness.observe.board import Board
from harness.run.budget import restarts_without_progress
from harness.run.exit_codes import CRASH_LOOP, NOT_RETRIED
from harness.run.folder import Ledger, RunFolder
from harness.run.parent import die_with

STOP_SECONDS = 5
"""How long ranks get to end after SIGTERM before they are killed."""
UNLIMITED = 1_000_000
"""torch counts restarts down from here; the real budget is progress."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m harness.agent.launcher", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--node", required=True)
    parser.add_argument("--address", required=True)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT")
    parser.add_argument("--head", action="store_true")
    parser.add_argument("--boards", type=Path, required=True)
    options = parser.parse_args()
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # Slurm's warning goes to every process; the agent acts on it
    die_with(os.getppid())
    return launch(options)


def launch(options: argparse.Namespace) -> int:
    """Run the node's ranks until all have finished (0) or are not worth another start (an exit code of ours)."""
    from torch.distributed.elastic.agent.server.api import WorkerSpec
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.rendezvous import RendezvousParameters
    from torch.distributed.elastic.rendezvous import registry as rendezvous_registry
    from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousTimeoutError

    run = RunFolder(options.run)
    limit = run.load_config().cluster.max_restarts_without_progress
    rendezvous = rendezvous_registry.get_rendezvous_handler(
        RendezvousParameters(
            backend="c10d",
            endpoint=options.rendezvous,
            run_id=f"{run.name}.{options.attempt}",
            min_nodes=options.nodes,
            max_nodes=options.nodes,
            local_addr=options.address,
            is_host=options.head,
            join_timeout=600,
            last_call_timeout=1,
            keep_alive_interval=2,
        )
    )
    spec = WorkerSpec(
        role="rank",
        local_world_size=options.ranks,
        entrypoint=sys.executable,
        args=("-u", "-m", "harness.train", str(options.run)),
        rdzv_handler=rendezvous,
        max_restarts=UNLIMITED,
        monitor_interval=0.1,
        local_addr=options.address,
    )
    # a store of their own for each start of the ranks: in the agents' shared one a restarted rank finds the addresses
    # of its dead predecessors and calls them
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGTERM,SIGINT,SIGHUP,SIGQUIT"
    watcher = RestartPolicy(run, run.ledger(options.attempt, options.node), options.boards, options.head, limit)
    scratch = tempfile.mkdtemp(prefix="harness-ranks-")  # torch's own files about the ranks; nothing that anybody reads
    logs = DefaultLogsSpecs(log_dir=scratch)
    agent = _elastic_agent(watcher, spec, logs)
    try:
        result = agent.run()
    except SignalException:
        return 128 + signal.SIGTERM
    except (RendezvousClosedError, RendezvousTimeoutError) as error:
        print(f"the other nodes have given up: {error}", flush=True)
        return watcher.exit_code or 1
    finally:
        rendezvous.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)
    return (watcher.exit_code or 1) if result.is_failed() else 0


def _elastic_agent(policy: "RestartPolicy", spec: Any, logs: Any) -> Any:
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class ElasticAgent(LocalElasticAgent):
        """torch's agent, asking our policy before every restart."""

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            result = super()._monitor_workers(worker_group)
            if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                policy.failed({rank: failure.exitcode for rank, failure in result.failures.items()})
                if policy.exit_code:
                    self._remaining_restarts = 0
            return result

        def _restart_workers(self, worker_group: WorkerGroup) -> None:
            policy.restarting()
            super()._restart_workers(worker_group)

        def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *arguments: Any, **options: Any) -> None:
            # a rank inside a blocked collective can't act on SIGTERM: don't wait torch's 30 s for it
            if self._pcontext:
                self._pcontext.close(death_sig, STOP_SECONDS)
            super()._shutdown(death_sig, *arguments, **options)

    return ElasticAgent(spec=spec, logs_specs=logs, start_method="spawn", exit_barrier_timeout=300)


class RestartPolicy:
    """Says in the ledger which rank failed, and ends the run where starting again can't help."""

    def __init__(self, run: RunFolder, ledger: Ledger, boards: Path, head: bool, limit: int) -> None:
        self._run, self._ledger, self._boards, self._head, self._limit = run, ledger, boards, head, limit
        self.exit_code = 0

    def failed(self, exit_codes: dict[int, int]) -> None:
        """Ranks of this node died with these exit codes (negative: a signal's number)."""
        step = self._last_step()
        for rank, code in sorted(exit_codes.items()):
            self._ledger.write("rank_failed", step=step, rank=rank, exit_code=code, why=describe_exit(code))
            print(f"rank {rank} {describe_exit(code)} after step {step}", flush=True)
        fatal = sorted(set(exit_codes.values()) & NOT_RETRIED)
        if fatal:
            self.exit_code = fatal[0]
        elif self._head and restarts_without_progress(self._run.events()) >= self._limit:
            self.exit_code = CRASH_LOOP
            why = f"{self._limit} restarts in a row without a new step (cluster.max_restarts_without_progress={self._limit})"
            self._ledger.write("gave_up", step=step, why=why)
            print(f"giving up: {why}", flush=True)

    def restarting(self) -> None:
        """All ranks are about to start again; the head node counts it."""
        if self._head:
            reason = "hang" if (self._boards / "hang").exists() else "rank_crash"
            (self._boards / "hang").unlink(missing_ok=True)
            self._ledger.write("restart", step=self._last_step(), reason=reason)
        print(f"restarting the ranks at {time.strftime('%H:%M:%S')}", flush=True)

    def _last_step(self) -> int:
        steps = [0]
        for path in self._boards.glob("rank-*.board"):
            try:
                steps.append(int(Board.open_for_read(path).get("step")))
            except (OSError, ValueError):
                continue
        return max(steps)


def describe_exit(code: int) -> str:
    """`was killed by SIGKILL` or `exited with status 1`."""
    if code < 0:
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"
    return f"exited with status {code}"


if __name__ == "__main__":
    sys.exit(main())
