"""Which nodes a job could have, and which of them Slurm should keep it off, without ever leaving it too few."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Room:
    """The nodes of the job's partition as Slurm sees them."""

    needed: int = 1
    """cluster.nodes."""
    states: Mapping[str, str] | None = None
    """Node -> Slurm's long state; None: Slurm does not answer."""
    sick: frozenset[str] = frozenset()
    """Those of them that are down, drained or silent."""
    forbidden: frozenset[str] = frozenset()
    """The user's own exclusions (cluster.exclude)."""

    def healthy(self) -> set[str]:
        """Nodes that Slurm could give us now or when their jobs end."""
        return set(self.states or ()) - self.sick - self.forbidden

    def enough_without(self, excluded: Mapping[str, str]) -> bool:
        """Whether healthy nodes suffice without `excluded`. Unknown counts as no: nodes in hand are better."""
        return self.states is not None and len(self.healthy() - set(excluded)) >= self.needed


@dataclass(frozen=True)
class KeepOff:
    """What Slurm is told."""

    nodes: tuple[str, ...]
    waits_for: str = ""
    """What the job waits for where too few nodes are healthy; empty: for nothing but its turn."""


def keep_off(room: Room, excluded: Mapping[str, str]) -> KeepOff:
    """The exclusions to give to Slurm. The user's always stay. Ours yield if too few healthy nodes are left without them:
    a list that leaves fewer nodes than the job needs would leave it pending for ever, however many come back."""
    if room.states is None or room.enough_without(excluded):
        return KeepOff(tuple(sorted({*room.forbidden, *excluded})))
    known = [name for name in excluded if name in room.states and name not in room.forbidden]
    others = sorted(room.healthy() - set(excluded))
    whom = "; ".join(f"{name} ({excluded[name]})" for name in known)
    text = f"{room.needed} nodes needed, {len(others)} healthy{': ' if others else ''}{', '.join(others)}. " + (
        f"Excluded ones are tried again once Slurm calls them healthy: {whom}"
        if known
        else "Waiting for nodes to come back"
    )
    return KeepOff(tuple(sorted(room.forbidden | (set(excluded) - set(room.states)))), text)
