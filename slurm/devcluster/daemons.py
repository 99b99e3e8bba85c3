"""munged, MariaDB, slurmdbd and slurmctld: all on the controller's host, `ctl`."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from . import processes
from .config import CLUSTER_NAME
from .errors import ClusterError
from .layout import Layout

NAMES = ("munged", "mariadbd", "slurmdbd", "slurmctld")
DATABASE_PORT = 6819
START_SECONDS = 60.0
"""A daemon that is not ready after this long on a busy machine will not be."""
GONE_SECONDS = 5.0
"""Absent for this long: it died, and is not merely slow to appear."""
_AS_CTL = 'echo ctl >/proc/sys/kernel/hostname && exec "$@"'


def environment(layout: Layout) -> dict[str, str]:
    """Environment for Slurm's commands: ours, less what an enclosing Slurm job left, plus this cluster's SLURM_CONF."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_"))}
    return {**clean, "SLURM_CONF": str(layout.conf)}


def detach(command: list[str], log: Path, env: dict[str, str]) -> None:
    """Start a process that outlives us and belongs to nobody, its output appended to `log`."""
    with log.open("ab") as out:
        subprocess.run(
            ["setsid", "--fork", *command], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, check=True
        )


def _start(layout: Layout, *command: str, **variables: str) -> None:
    enter = ["nsenter", f"--net={layout.netns('ctl')}", "unshare", "--uts", "sh", "-c", _AS_CTL, "sh"]
    log = layout.logs / f"{Path(command[0]).name}.out"
    detach([*enter, *command], log, {**environment(layout), **variables})


def _wait_for(layout: Layout, name: str, ready: Callable[[], bool]) -> None:
    """Wait until a daemon answers. Raises ClusterError with the end of its logs when it dies or stays silent."""
    start = last_seen = time.monotonic()
    while not ready():
        now = time.monotonic()
        if name in running(layout):
            last_seen = now
        if now - last_seen > GONE_SECONDS:
            raise ClusterError(f"{name} died\n{log_tail(layout, name)}")
        if now - start > START_SECONDS:
            raise ClusterError(f"{name} did not answer in {START_SECONDS:.0f} s\n{log_tail(layout, name)}")
        time.sleep(0.05)


def log_tail(layout: Layout, name: str, lines: int = 8) -> str:
    """The last lines of all logs of a daemon, for an error message."""
    parts = []
    for path in sorted(layout.logs.glob(f"{name}*")):
        tail = path.read_text(errors="replace").splitlines()[-lines:]
        parts += [f"--- {path}", *tail] if tail else []
    return "\n".join(parts) or f"(no log of {name} in {layout.logs})"


def running(layout: Layout) -> dict[str, int]:
    """Daemons that live on `ctl`, each with its process id."""
    found: dict[str, int] = {}
    for pid in processes.in_network(layout.netns("ctl")):
        name = Path(processes.command(pid).split(" ")[0]).name
        if name in NAMES:
            found.setdefault(name, pid)
    return found


def _answers(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), 1).close()
    except OSError:
        return False
    return True


def _answers_on(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0


def start_munge(layout: Layout) -> None:
    """One munged for all: its Unix socket is a path, and paths cross network namespaces."""
    folder = layout.munge_socket.parent
    key = folder / "key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(1024))
    _start(
        layout, "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={layout.munge_socket}",
        f"--pid-file={folder}/pid", f"--log-file={layout.logs}/munged.log", f"--seed-file={folder}/seed",
        "--num-threads=4",
    )  # fmt: skip
    _wait_for(layout, "munged", lambda: _answers_on(layout.munge_socket))


def start_database(layout: Layout) -> None:
    """An empty MariaDB on a Unix socket; small and unsafe against power loss, as `down` deletes it anyway."""
    data = layout.dir / "mariadb"
    install = [
        "nsenter", f"--net={layout.netns('ctl')}",  # so that `down` finds it if we are killed meanwhile
        "mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
        "--auth-root-authentication-method=normal", "--skip-test-db",
    ]  # fmt: skip
    done = subprocess.run(install, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    (layout.logs / "mariadb-install.log").write_text(done.stdout + done.stderr)
    if done.returncode:
        raise ClusterError(f"mariadb-install-db failed\n{log_tail(layout, 'mariadb-install')}")
    _start(
        layout, "mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
        f"--socket={layout.database_socket}", "--skip-networking", f"--pid-file={layout.dir}/run/mariadbd.pid",
        "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
        "--skip-log-bin", "--performance-schema=OFF",
    )  # fmt: skip
    _wait_for(layout, "mariadbd", lambda: _answers_on(layout.database_socket))


def start_accounting(layout: Layout) -> None:
    """slurmdbd; without it there is no sacct, and submitit knows no job's state."""
    _start(layout, "slurmdbd", "-D", MYSQL_UNIX_PORT=str(layout.database_socket))
    _wait_for(layout, "slurmdbd", lambda: _answers(layout.address("ctl"), DATABASE_PORT))
    # slurmctld refuses to start for a cluster that accounting does not know.
    done = subprocess.run(
        ["sacctmgr", "--immediate", "add", "cluster", CLUSTER_NAME],
        env=environment(layout), capture_output=True, text=True, timeout=START_SECONDS,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError(f"sacctmgr add cluster: {done.stdout}{done.stderr}\n{log_tail(layout, 'slurmdbd')}")


def start_controller(layout: Layout) -> None:
    """slurmctld, as host `ctl`."""
    _start(layout, "slurmctld", "-D")

    def answers() -> bool:
        ping = subprocess.run(["scontrol", "ping"], env=environment(layout), capture_output=True, text=True)
        return " is UP" in ping.stdout

    _wait_for(layout, "slurmctld", answers)
