"""Names, addresses and paths of one cluster, and the file that remembers them."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from .errors import ClusterError

MAX_NODES = 200
"""The last byte of a node's address is its number plus 10."""
MAX_SLOTS = 32
"""Clusters that can be up on one machine at a time."""
MAX_DIR_LENGTH = 80
"""A Unix socket's path has at most 107 bytes, and munge's and MariaDB's sockets lie in the folder."""
HIDDEN_IN_NODES = ("/run", "/var/run", "/dev", "/proc", "/sys")
"""Places where a node has mounts of its own and would not see the cluster's folder."""
LOGS = "log"
LOGS_MARK = ".slurm-dev"
"""File in the folder of logs that tells ours from any other folder of that name."""
OWN_ENTRIES = frozenset(
    ("cluster.json", "cluster.json.new", "slurm.conf", "slurmdbd.conf", "gres.conf", "cgroup.conf", "hosts")
    + ("state", "spool", LOGS, "run", "munge", "mariadb", "gpu")
)
"""All that a cluster ever puts into its folder; `down` deletes these and nothing else."""


@dataclass(frozen=True)
class Settings:
    """What the user chose at `up`."""

    nodes: int = 4
    gpus: int = 0
    """Fake GPUs per node; no driver, but Slurm counts them and sets CUDA_VISIBLE_DEVICES."""
    slurmd_timeout: int = 5
    """Seconds without an answer after which Slurm sets a node DOWN."""

    def check(self) -> None:
        """Raise ClusterError when a value is outside what the cluster can do."""
        for name, value, low, high in (
            ("N (number of nodes)", self.nodes, 1, MAX_NODES),
            ("--gpus", self.gpus, 0, 64),
            ("--slurmd-timeout", self.slurmd_timeout, 3, 3600),
        ):
            if not low <= value <= high:
                raise ClusterError(f"{name} is {value}; give a number from {low} to {high}")


@dataclass(frozen=True)
class Layout:
    """Where everything of one cluster is. `slot` tells clusters on one machine apart."""

    dir: Path
    slot: int
    settings: Settings

    @property
    def prefix(self) -> str:
        """Start of the names of bridge, links, network namespaces and cgroups; fits the kernel's 15 letters."""
        return f"hslurm{self.slot}"

    @property
    def bridge(self) -> str:
        return self.prefix

    @property
    def subnet(self) -> str:
        return f"10.77.{self.slot}.0/24"

    @property
    def nodes(self) -> list[str]:
        return [f"n{i}" for i in range(1, self.settings.nodes + 1)]

    @property
    def members(self) -> list[str]:
        """All that hang on the bridge: the controller's host and the nodes."""
        return ["ctl", *self.nodes]

    def member(self, name: str) -> str:
        """Name of a member's link, network namespace and cgroup."""
        return f"{self.prefix}-{name}"

    def address(self, name: str) -> str:
        """IPv4 address of `host` (this machine), `ctl` or a node."""
        last = {"host": 1, "ctl": 2}.get(name) or 10 + int(name[1:])
        return f"10.77.{self.slot}.{last}"

    def netns(self, name: str) -> Path:
        return Path("/run/netns") / self.member(name)

    @property
    def conf(self) -> Path:
        return self.dir / "slurm.conf"

    @property
    def logs(self) -> Path:
        return self.dir / LOGS

    @property
    def munge_socket(self) -> Path:
        return self.dir / "munge" / "socket"

    @property
    def database_socket(self) -> Path:
        return self.dir / "run" / "mariadb.sock"

    def check_node(self, name: str) -> None:
        """Raise ClusterError unless `name` is a node of this cluster."""
        if name not in self.nodes:
            raise ClusterError(f"{name} is no node of this cluster; its nodes are {self.nodes[0]} to {self.nodes[-1]}")

    def save(self) -> None:
        """Remember slot and settings in the cluster's folder."""
        text = json.dumps({"slot": self.slot, **asdict(self.settings)})
        new = self.dir / "cluster.json.new"
        new.write_text(text + "\n")
        new.rename(state_file(self.dir))


def state_file(folder: Path) -> Path:
    """The file that says that `folder` is a cluster's, and which."""
    return folder / "cluster.json"


def load(folder: Path) -> Layout | None:
    """The layout saved in `folder`, or None when there is none (or a file of that name that is not ours)."""
    try:
        values = json.loads(state_file(folder).read_text())
        slot = values.pop("slot")
        return Layout(folder, slot, Settings(**values))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_dir(folder: Path) -> None:
    """Raise ClusterError when a cluster cannot live in `folder` (an absolute path)."""
    text = str(folder)
    if len(text) > MAX_DIR_LENGTH:
        raise ClusterError(
            f"--dir {text} has {len(text)} letters; sockets in it need a path of {MAX_DIR_LENGTH} or less"
        )
    if any(folder.is_relative_to(place) for place in HIDDEN_IN_NODES):
        raise ClusterError(
            f"--dir {text} is hidden inside the nodes, which mount their own there; use /tmp or /var/tmp"
        )
    if any(c.isspace() or c in "#,=\"'\\" for c in text):
        raise ClusterError(f"--dir {text!r} has a blank or one of # , = \" ' \\, which slurm.conf cannot hold")
    if folder.exists() and not folder.is_dir():
        raise ClusterError(f"--dir {text} is a file; give a folder that does not exist yet")


def check_empty(folder: Path) -> None:
    """Raise ClusterError when `folder` holds anything but the logs that an earlier cluster left in it."""
    if not folder.is_dir():
        return
    kept = {LOGS} if (folder / LOGS / LOGS_MARK).exists() else set()
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in kept)
    if foreign:
        raise ClusterError(
            f"--dir {folder} holds other files ({', '.join(foreign[:3])}), and `down` deletes the folder; "
            "give one that does not exist yet"
        )
