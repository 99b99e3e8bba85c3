"""A real Slurm cluster for tests: the session-scoped fixture `slurm_cluster`, 8 nodes."""

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import cgroups, cluster, daemons, network, nodes, requirements
from slurm.devcluster.errors import MissingError
from slurm.devcluster.layout import Layout, Settings
from tests.conftest import skip_or_fail

NODES = 8
"""From 7 on, Slurm ends a step through a tree of its nodes, where a dead one makes the others wait."""


class SlurmCluster:
    """A cluster that is up. Nodes are named n1, n2, ...; every method raises ClusterError when it cannot."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout

    @property
    def env(self) -> dict[str, str]:
        """Environment for sbatch, srun, the harness: PATH with Slurm's commands, SLURM_CONF, no other SLURM_*."""
        return daemons.environment(self.layout)

    @property
    def dir(self) -> Path:
        """The cluster's folder; logs are in its `log`."""
        return self.layout.dir

    @property
    def conf(self) -> Path:
        """Path of slurm.conf."""
        return self.layout.conf

    @property
    def nodes(self) -> list[str]:
        """Names of all nodes."""
        return self.layout.nodes

    def address(self, node: str) -> str:
        """IPv4 address of a node, of `ctl` or of this machine (`host`), reachable from all of them."""
        return self.layout.address(node)

    def kill(self, node: str) -> None:
        """Power loss."""
        nodes.power_off(self.layout, node)

    def start(self, node: str) -> None:
        """Power on again; or, where only slurmd is dead, start it."""
        nodes.power_on(self.layout, node)

    def unplug(self, node: str) -> None:
        """Pull the network cable."""
        network.set_plugged(self.layout, node, False)

    def plug(self, node: str) -> None:
        """Put the cable back."""
        network.set_plugged(self.layout, node, True)

    def freeze(self, node: str) -> None:
        """Stop all processes of the node at once."""
        cgroups.set_frozen(self.layout, node, True)

    def thaw(self, node: str) -> None:
        """Let them go on."""
        cgroups.set_frozen(self.layout, node, False)

    def kill_slurmd(self, node: str) -> None:
        """SIGKILL the node's slurmd and nothing else."""
        nodes.kill_slurmd(self.layout, node)

    def pids(self, node: str) -> dict[int, str]:
        """Process id (of this machine, good for os.kill) and command line of each process on the node."""
        return nodes.pids(self.layout, node)

    def exec(self, node: str, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the node and wait; raises ClusterError with its output when it fails."""
        return nodes.run_inside(self.layout, node, *command)

    def states(self) -> dict[str, str]:
        """Slurm's state of each node: `idle`, `mixed`, `down*`, ..."""
        return cluster.node_states(self.layout)

    def wait_idle(self, count: int) -> None:
        """Wait until at least `count` nodes are idle."""
        cluster.wait_idle(self.layout, count)

    def repair(self) -> None:
        """Undo whatever a test broke and wait until all nodes are idle, so that the next test finds them well."""
        subprocess.run(["scancel", "--user=root"], env=self.env, capture_output=True)
        for node, state in self.states().items():
            if "drain" in state:
                subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], env=self.env, check=True)
        for node in self.nodes:
            if cgroups.is_frozen(self.layout, node):
                self.thaw(node)
            if not network.is_plugged(self.layout, node) and self.pids(node):
                self.plug(node)
            if nodes.slurmd_of(self.layout, node) is None:
                self.start(node)
        self.wait_idle(len(self.nodes))


def require_slurm() -> None:
    """Skip the test, or fail it under CI, where Slurm or root is missing."""
    try:
        requirements.check()
    except MissingError as missing:
        skip_or_fail(str(missing))


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[SlurmCluster]:
    """NODES nodes, up for the whole session; a test that breaks one calls `repair()` at its end."""
    require_slurm()
    folder = Path(tempfile.mkdtemp(prefix="harness-slurm-"))
    layout = cluster.up(folder, Settings(nodes=NODES))
    try:
        yield SlurmCluster(layout)
    finally:
        cluster.down(folder)
