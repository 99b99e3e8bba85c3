"""What submitit pickles and runs on every node. It carries the run folder's path and nothing else: all state is there."""

from dataclasses import dataclass


@dataclass(frozen=True)
class AgentTask:
    """Callable that runs the node's agent for one run."""

    run_path: str

    def __call__(self) -> None:
        """Raises SystemExit with the agent's exit code where it is not 0, so that srun sees it."""
        from harness.agent.agent import run_agent

        code = run_agent(self.run_path)
        if code:
            raise SystemExit(code)
