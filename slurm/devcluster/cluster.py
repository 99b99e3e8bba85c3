"""Brings a whole cluster up and down, and says how it is."""

import contextlib
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import cgroups, config, daemons, network, nodes, processes, requirements
from .errors import ClusterError
from .layout import LOGS, LOGS_MARK, MAX_SLOTS, OWN_ENTRIES, Layout, Settings, check_dir, check_empty, load

IDLE_SECONDS = 90.0


def up(folder: Path, settings: Settings) -> Layout:
    """Bring a cluster up in `folder` and return once every node is idle.

    Raises MissingError, or ClusterError; then nothing is left but the logs.
    """
    settings.check()
    folder = folder.resolve()
    check_dir(folder)
    requirements.check()
    with network.machine_lock():
        if load(folder) is not None or network.slot_of(folder) is not None:
            raise ClusterError(
                f"a cluster is up (or half up) in {folder}\n"
                f"fix: `slurm/dev down --dir {folder}` first, or another folder with --dir"
            )
        check_empty(folder)
        with _undo_on_error(folder):
            shutil.rmtree(folder / LOGS, ignore_errors=True)  # an earlier cluster's, from --keep-logs
            folder.mkdir(parents=True, exist_ok=True)
            layout = network.claim(folder, settings)
            layout.save()
    with _undo_on_error(folder):
        _start(layout)
    return layout


@contextlib.contextmanager
def _undo_on_error(folder: Path) -> Iterator[None]:
    """Take a half-made cluster down again, and add to the error where its logs are."""
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(ClusterError):
            down(folder, keep_logs=True)
        logs = folder / LOGS
        if isinstance(error, ClusterError) and logs.is_dir():
            raise type(error)(f"{error}{network.firewall_hint()}\nall logs: {logs}") from error
        raise


def _start(layout: Layout) -> None:
    _prepare_folder(layout)
    config.write(layout)
    network.create(layout)
    daemons.start_munge(layout)
    daemons.start_database(layout)
    daemons.start_accounting(layout)
    daemons.start_controller(layout)
    for node in layout.nodes:
        nodes.power_on(layout, node, wait=False)
    for node in layout.nodes:
        nodes.wait_booted(layout, node)
    wait_idle(layout, len(layout.nodes))


def _prepare_folder(layout: Layout) -> None:
    for name in ("state", "spool", "log", "run", "munge", "mariadb", "gpu"):
        (layout.dir / name).mkdir(exist_ok=True)
    (layout.logs / LOGS_MARK).touch()
    for folder in (layout.dir, layout.munge_socket.parent):
        folder.chmod(0o755)  # every user's commands read slurm.conf and reach munge's socket
    for i in range(layout.settings.gpus):
        device = layout.dir / "gpu" / f"nvidia{i}"
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(195, i))  # Slurm takes nothing but a character device


def wait_idle(layout: Layout, count: int, seconds: float = IDLE_SECONDS) -> None:
    """Wait until at least `count` nodes are idle. Raises ClusterError with Slurm's view of them when they are not."""
    deadline = time.monotonic() + seconds
    while sum(state == "idle" for state in node_states(layout).values()) < count:
        if time.monotonic() > deadline:
            view = _slurm(layout, "sinfo", "-N", "-p", "main", "-o", "%N %T %E").stdout
            raise ClusterError(f"fewer than {count} nodes are idle after {seconds:.0f} s:\n{view}")
        time.sleep(0.1)


def _slurm(layout: Layout, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=daemons.environment(layout), capture_output=True, text=True)


def node_states(layout: Layout) -> dict[str, str]:
    """Slurm's state of each node (`idle`, `mixed`, `down*`, ...); empty while the controller does not answer."""
    answer = _slurm(layout, "sinfo", "-h", "-N", "-p", "main", "-o", "%N %T").stdout
    return dict(line.split() for line in answer.splitlines())


def get(folder: Path) -> Layout:
    """The cluster in `folder`. Raises ClusterError when none is up there."""
    layout = load(folder.resolve())
    if layout is None:
        raise ClusterError(
            f"no cluster is up in {folder}; start one with `slurm/dev up`, or name its folder with --dir"
        )
    return layout


def down(folder: Path, keep_logs: bool = False) -> bool:
    """Remove every trace of the cluster in `folder`, in whatever state it is. False when there was none.

    Raises ClusterError when a process does not die; running it again goes on from there.
    """
    folder = folder.resolve()
    requirements.add_system_path()
    slot = network.slot_of(folder)
    saved = load(folder)
    if slot is None and saved is not None and network.owner(saved.slot) is None:
        slot = saved.slot  # the bridge is gone, the rest may not be
    if slot is not None:
        _remove_slot(Layout(folder, slot, Settings()).prefix)
    if slot is None and saved is None:
        return False
    _remove_folder(folder, keep_logs)
    return True


def _remove_slot(prefix: str) -> None:
    requirements.check_root()
    for netns in network.namespaces(prefix):
        processes.kill_network(netns)
    network.destroy(prefix)
    cgroups.destroy(prefix)


def _remove_folder(folder: Path, keep_logs: bool) -> None:
    if not folder.is_dir():
        return
    for name in OWN_ENTRIES - ({LOGS} if keep_logs else set()):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # kept logs, or a file of the user's
        folder.rmdir()


def all_up() -> list[Path]:
    """Folders of all clusters that are up on this machine."""
    return [Path(name) for slot in range(MAX_SLOTS) if (name := network.owner(slot))]


def status(layout: Layout) -> str:
    """A table for people: daemons, and each node's power, cable, freezer, slurmd and state in Slurm."""
    alive = daemons.running(layout)
    words = [f"{name} {f'pid {alive[name]}' if name in alive else 'DEAD'}" for name in daemons.NAMES]
    lines = [f"cluster in {layout.dir}, {layout.subnet}", "ctl  " + ", ".join(words), ""]
    row = "{:<6} {:<14} {:<6} {:<10} {:<7} {:<7} {:>9}  {}"
    lines.append(row.format("node", "address", "power", "network", "frozen", "slurmd", "processes", "slurm"))
    states = node_states(layout)
    for node in layout.nodes:
        tree = nodes.pids(layout, node)
        lines.append(
            row.format(
                node,
                layout.address(node),
                "on" if tree else "OFF",
                "plugged" if network.is_plugged(layout, node) else "UNPLUGGED",
                "FROZEN" if cgroups.is_frozen(layout, node) else "no",
                "runs" if nodes.slurmd_of(layout, node) else "DEAD",
                len(tree),
                states.get(node, "unknown (controller does not answer)"),
            )
        )
    return "\n".join(lines)
