"""Starts this node's ranks through torch's elastic agent, as a child process of ours: torch stays out of the agent.

A rank that dies takes the others with it; then the elastic agents of all nodes meet again and start all ranks anew, which
resume from the newest checkpoint. Whether they may is decided by `harness.recovery`.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness.recovery.ranks import RestartPolicy
from harness.run.folder import RunFolder
from harness.run.parent import die_with
from harness.system.output import keep_printing

STOP_SECONDS = 5
"""How long ranks get to end after SIGTERM before they are killed."""
UNLIMITED = 1_000_000
"""torch counts restarts down from here; the real budget is progress."""


class GivesUp(Exception):
    """The ranks are not worth another start; the policy has said why."""


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
    keep_printing()
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
    # torch's own files about the ranks, which nobody reads: beside the boards, for /tmp may be full
    logs = DefaultLogsSpecs(log_dir=str(options.boards / "torch"))
    agent = _elastic_agent(watcher, spec, logs)
    try:
        result = agent.run()
    except SignalException:
        return 128 + signal.SIGTERM
    except GivesUp:
        return watcher.exit_code
    except (RendezvousClosedError, RendezvousTimeoutError) as error:
        print(f"the other nodes have given up: {error}", flush=True)
        return watcher.exit_code or 1
    finally:
        watcher.catch_up()
        rendezvous.shutdown()
    return (watcher.exit_code or 1) if result.is_failed() else 0


def _elastic_agent(policy: "RestartPolicy", spec: Any, logs: Any) -> Any:
    from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerState
    from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent

    class ElasticAgent(LocalElasticAgent):
        """torch's agent, asking our policy before every restart."""

        def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
            policy.catch_up()
            result = super()._monitor_workers(worker_group)
            if result.state in (WorkerState.FAILED, WorkerState.UNHEALTHY):
                policy.failed({rank: failure.exitcode for rank, failure in result.failures.items()})
                if policy.exit_code:
                    self._remaining_restarts = 0
            return result

        def _restart_workers(self, worker_group: WorkerGroup) -> None:
            self._stop_workers(worker_group)
            wait_seconds = policy.restarting()
            if policy.exit_code:  # ranks of another node have died once too often
                spec.rdzv_handler.set_closed()
                raise GivesUp
            time.sleep(wait_seconds)
            super()._restart_workers(worker_group)
            policy.restarted()

        def _shutdown(self, death_sig: signal.Signals = signal.SIGTERM, *arguments: Any, **options: Any) -> None:
            # a rank inside a blocked collective can't act on SIGTERM: don't wait torch's 30 s for it
            if self._pcontext:
                self._pcontext.close(death_sig, STOP_SECONDS)
            super()._shutdown(death_sig, *arguments, **options)

    return ElasticAgent(spec=spec, logs_specs=logs, start_method="spawn", exit_barrier_timeout=300)


if __name__ == "__main__":
    sys.exit(main())
