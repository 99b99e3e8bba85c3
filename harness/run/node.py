"""Which node of which job this process is on."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from harness import slurm


@dataclass(frozen=True)
class Node:
    """This node's place in the job."""

    name: str
    address: str
    """What other nodes and Prometheus reach it by."""
    index: int
    nodes: list[str]
    job_id: str
    restart_count: int
    on_slurm: bool

    @property
    def is_head(self) -> bool:
        """The head node claims the attempt, hosts the rendezvous and writes the outcome."""
        return self.index == 0

    @property
    def attempt_key(self) -> str:
        """This start of this job, and no other."""
        return f"{self.job_id}.{self.restart_count}"

    @property
    def next_key(self) -> str:
        """The start that follows if the job is put back into the queue."""
        return f"{self.job_id}.{self.restart_count + 1}"


def this_node(environ: Mapping[str, str] = os.environ) -> Node:
    """From the variables that Slurm sets on each node of a job, or submitit's local controller for its task."""
    if "SLURM_PROCID" in environ:
        name = environ["SLURMD_NODENAME"]
        # the job's nodes, not the step's: large jobs run their agents in several steps
        nodes = slurm.expand_nodes(environ["SLURM_JOB_NODELIST"])
        return Node(
            name=name,
            address=_address(name),
            index=nodes.index(name),
            nodes=nodes,
            job_id=environ["SLURM_JOB_ID"],
            restart_count=int(environ.get("SLURM_RESTART_COUNT", "0")),
            on_slurm=True,
        )
    return Node(
        name=socket.gethostname(),
        address="127.0.0.1",
        index=0,
        nodes=[socket.gethostname()],
        job_id=environ["SUBMITIT_LOCAL_JOB_ID"],
        restart_count=0,
        on_slurm=False,
    )


def _address(name: str) -> str:
    """The address that the node's own name stands for; where it has none, the one that its default route leaves by."""
    try:
        address = socket.gethostbyname(name)
        if not address.startswith("127."):
            return address
    except OSError:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:  # connecting a datagram socket sends nothing
        try:
            s.connect(("192.0.2.1", 9))
            return str(s.getsockname()[0])
        except OSError:
            return name
