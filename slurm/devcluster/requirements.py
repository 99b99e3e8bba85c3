"""What the machine must have before anything is started."""

import os
import shutil
from glob import glob

from .errors import MissingError

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Daemons live in sbin, which root's PATH lacks under cron and in some shells."""

PACKAGE_OF = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "scontrol": "slurm-client",
    "sinfo": "slurm-client",
    "sacctmgr": "slurm-client",
    "slurmdbd": "slurmdbd",
    "munged": "munge",
    "mariadbd": "mariadb-server-core",
    "mariadb-install-db": "mariadb-server-core",
    "my_print_defaults": "mariadb-client-core",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setsid": "util-linux",
}
"""Commands that the cluster runs, with the Debian package of each."""

ACCOUNTING_PLUGIN = "/usr/lib/*/slurm*/accounting_storage_mysql.so"


def add_system_path() -> None:
    """Append the system's folders to PATH, so that the daemons are found whatever shell started us."""
    have = os.environ.get("PATH", "").split(os.pathsep)
    extra = [folder for folder in SYSTEM_PATH.split(os.pathsep) if folder not in have]
    os.environ["PATH"] = os.pathsep.join([*filter(None, have), *extra])


def missing_packages() -> dict[str, str]:
    """Commands (or plugins) that are absent, each with the package that brings it."""
    absent = {command: package for command, package in PACKAGE_OF.items() if shutil.which(command) is None}
    if not glob(ACCOUNTING_PLUGIN):
        absent["accounting_storage_mysql.so"] = "slurm-wlm-mysql-plugin"
    return absent


def check() -> None:
    """Raise MissingError with one message that names all that is absent and how to get it."""
    add_system_path()
    absent = missing_packages()
    if absent:
        packages = " ".join(sorted(set(absent.values())))
        raise MissingError(
            f"not on this machine: {', '.join(absent)}\n"
            f"fix: apt-get update && apt-get install --no-install-recommends {packages}"
        )
    check_root()


def check_root() -> None:
    """Raise MissingError unless we are root."""
    if os.geteuid() != 0:
        raise MissingError(
            "network and process namespaces of the nodes need root, and this is user id "
            f"{os.geteuid()}\nfix: run the same command with sudo, or as root in a container with --privileged"
        )
