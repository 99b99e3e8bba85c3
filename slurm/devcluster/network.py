"""A bridge, and for each member a network namespace with one link to it. No default route, no NAT, no forwarding."""

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

from .errors import ClusterError, MissingError
from .layout import MAX_SLOTS, Layout, Settings

NETNS = Path("/run/netns")
DEVICES = Path("/sys/class/net")


def ip(*args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run iproute2's `ip`; raises ClusterError with its message when it fails and `check` is set."""
    done = subprocess.run(["ip", *args], capture_output=True, text=True)
    if check and "not permitted" in done.stderr:
        raise MissingError(
            f"root here may not make networks (ip {' '.join(args)}: {done.stderr.strip()})\n"
            "fix: in a container, start it with --privileged"
        )
    if check and done.returncode:
        raise ClusterError(f"ip {' '.join(args)}: {done.stderr.strip()}")
    return done


@contextlib.contextmanager
def machine_lock(seconds: float = 60.0) -> Iterator[None]:
    """Hold a lock of the whole machine, so that two `up` at once get different slots. It leaves no file."""
    deadline = time.monotonic() + seconds
    with socket.socket(socket.AF_UNIX) as lock:
        while True:
            try:
                lock.bind("\0harness-slurm-slots")
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ClusterError("another `slurm/dev` has been busy for a minute; try again") from None
                time.sleep(0.05)
        yield


def owner(slot: int) -> str | None:
    """Folder of the cluster that holds a slot (written on its bridge); empty when unsigned; None when free."""
    try:
        return (DEVICES / Layout(Path(), slot, Settings()).bridge / "ifalias").read_text().strip()
    except OSError:
        return None


def slot_of(folder: Path) -> int | None:
    """The slot that the cluster in `folder` holds, or None."""
    return next((slot for slot in range(MAX_SLOTS) if owner(slot) == str(folder)), None)


def claim(folder: Path, settings: Settings) -> Layout:
    """Make the bridge of the first free slot and sign it. The caller holds `machine_lock`.

    Raises ClusterError when all slots are taken.
    """
    routes = json.loads(ip("-json", "-4", "route", "show").stdout or "[]")
    taken = [ip_network(r["dst"], strict=False) for r in routes if r["dst"] != "default"]
    for slot in range(MAX_SLOTS):
        layout = Layout(folder, slot, settings)
        overlaps = any(ip_network(layout.subnet).overlaps(net) for net in taken)
        if owner(slot) or (overlaps and owner(slot) is None):
            continue
        if owner(slot) == "":  # left by an `up` that was killed between these two commands
            ip("link", "del", layout.bridge)
        ip("link", "add", layout.bridge, "type", "bridge")
        ip("link", "set", layout.bridge, "alias", str(folder))
        return layout
    raise ClusterError(
        f"{MAX_SLOTS} clusters are up, or 10.77.0.0/16 is in use; see `ip -brief link` and `ip route`, "
        "and take old clusters down with `slurm/dev down --dir DIR`"
    )


def create(layout: Layout) -> None:
    """Address the bridge and connect every member to it."""
    ip("addr", "add", f"{layout.address('host')}/24", "dev", layout.bridge)
    ip("link", "set", layout.bridge, "up")
    for name in layout.members:
        link = layout.member(name)
        ip("netns", "add", link)
        ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", link)
        ip("link", "set", link, "master", layout.bridge, "up")
        ip("-n", link, "addr", "add", f"{layout.address(name)}/24", "dev", "eth0")
        ip("-n", link, "link", "set", "eth0", "up")
        ip("-n", link, "link", "set", "lo", "up")


def namespaces(prefix: str) -> list[Path]:
    """Network namespaces of the members of one cluster that exist now."""
    return sorted(NETNS.glob(f"{prefix}-*"))


def destroy(prefix: str) -> None:
    """Remove links, namespaces and bridge. Processes in them must be gone already."""
    # Links first: left to the namespace's end they go later, in a kernel worker, and a quick `up` meets them.
    for device in sorted(DEVICES.glob(f"{prefix}-*")):
        ip("link", "del", device.name, check=False)
    for netns in namespaces(prefix):
        ip("netns", "del", netns.name)
    if (DEVICES / prefix).exists():
        ip("link", "del", prefix)
    if NETNS.is_dir() and not any(NETNS.iterdir()):
        # `ip netns add` made this mount, and makes it again; where it is none, umount's complaint is no news.
        subprocess.run(["umount", str(NETNS)], capture_output=True)


def set_plugged(layout: Layout, node: str, plugged: bool) -> None:
    """Plug or pull the node's network cable."""
    ip("link", "set", layout.member(node), "up" if plugged else "down")


def is_plugged(layout: Layout, node: str) -> bool:
    """Whether the node's cable is in."""
    try:
        flags = int((DEVICES / layout.member(node) / "flags").read_text(), 16)
    except OSError:
        return False
    return bool(flags & 1)  # IFF_UP


def firewall_hint() -> str:
    """Advice for the one foreign setting that silently drops packets between nodes; empty when it is not there."""
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if switch.exists() and switch.read_text().strip() == "1":
        return (
            "\nhint: this machine's firewall sees bridged packets (Docker sets this) and may drop those between nodes; "
            "try: sysctl -w net.bridge.bridge-nf-call-iptables=0"
        )
    return ""
