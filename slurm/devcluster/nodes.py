"""One node: power, network cable, slurmd, and commands inside it."""

import os
import subprocess
import time
from pathlib import Path

from . import cgroups, daemons, network, processes
from .errors import ClusterError
from .layout import Layout

INIT = Path(__file__).with_name("node-init.sh")
BOOT_SECONDS = 60.0


def power_on(layout: Layout, node: str, wait: bool = True) -> None:
    """Boot the node, cable in; where it has power but no slurmd, start slurmd. Raises ClusterError when it fails."""
    init = processes.init_of(layout.netns(node))
    if init is not None:
        if slurmd_of(layout, node) is not None:
            raise ClusterError(f"{node} is on already, and its slurmd runs")
        run_inside(layout, node, "slurmd", "-N", node)
        return
    processes.kill_network(layout.netns(node))
    _ready_file(layout, node).unlink(missing_ok=True)
    network.set_plugged(layout, node, True)
    cgroup = cgroups.create(layout, node)
    boot = ["nsenter", f"--net={layout.netns(node)}"]
    boot += ["unshare", "--uts", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    boot += [str(INIT), node, str(layout.dir), *([str(cgroup)] if cgroup else [])]
    daemons.detach(boot, layout.logs / f"init-{node}.log", daemons.environment(layout))
    if wait:
        wait_booted(layout, node)


def wait_booted(layout: Layout, node: str) -> None:
    """Wait until the node's init has started slurmd. Raises ClusterError with its log when it does not."""
    deadline = time.monotonic() + BOOT_SECONDS
    while not _ready_file(layout, node).exists():
        if time.monotonic() > deadline:
            logs = daemons.log_tail(layout, f"init-{node}.") + "\n" + daemons.log_tail(layout, f"slurmd-{node}.")
            raise ClusterError(f"{node} did not boot in {BOOT_SECONDS:.0f} s\n{logs}")
        time.sleep(0.02)


def _ready_file(layout: Layout, node: str) -> Path:
    return layout.dir / "run" / f"{node}.ready"


def power_off(layout: Layout, node: str) -> None:
    """Power loss: the network falls silent first, so that no peer hears a farewell, then every process is gone."""
    init = _init(layout, node)
    tree = processes.in_tree(init)
    network.set_plugged(layout, node, False)
    processes.kill([init])
    processes.wait_gone(tree)
    processes.kill_network(layout.netns(node))  # our side of it: the parents of init and of `exec`


def kill_slurmd(layout: Layout, node: str) -> None:
    """SIGKILL the node's slurmd and leave all else alone."""
    _init(layout, node)
    pid = slurmd_of(layout, node)
    if pid is None:
        raise ClusterError(f"no slurmd runs on {node}; start it with `slurm/dev start {node}`")
    processes.kill([pid])
    processes.wait_gone([pid])


def slurmd_of(layout: Layout, node: str) -> int | None:
    """Process id of the node's slurmd daemon, or None."""
    own = f"slurmd -N {node}"
    return next((pid for pid, line in pids(layout, node).items() if line == own), None)


def pids(layout: Layout, node: str) -> dict[int, str]:
    """This machine's process ids of all processes on the node, each with its command line; empty without power."""
    init = processes.init_of(layout.netns(node))
    return {pid: processes.command(pid) for pid in processes.in_tree(init)} if init else {}


def _init(layout: Layout, node: str) -> int:
    init = processes.init_of(layout.netns(node))
    if init is None:
        raise ClusterError(f"{node} has no power; switch it on with `slurm/dev start {node}`")
    return init


def inside(layout: Layout, node: str, *command: str) -> list[str]:
    """Command line that runs `command` on the node, in the current folder, as one of the node's processes."""
    init = _init(layout, node)
    cgroup = cgroups.folder(layout, node)
    join = 'echo $$ >"$0/cgroup.procs"; exec "$@"' if cgroup and cgroup.is_dir() else 'exec "$@"'
    enter = ["nsenter", f"--target={init}", "--mount", "--uts", "--net", "--pid", f"--wdns={os.getcwd()}"]
    return ["sh", "-c", join, str(cgroup), *enter, "--", *command]


def run_inside(layout: Layout, node: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the node and wait for it. Raises ClusterError when it fails."""
    full = inside(layout, node, *command)
    done = subprocess.run(full, env=daemons.environment(layout), capture_output=True, text=True)
    if done.returncode:
        raise ClusterError(f"{' '.join(command)} on {node}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done
