"""How long a run may go on restarting: as long as it gets further, and not by counting."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REACHED = frozenset({"checkpoint", "stopped", "finished", "restart"})
"""Events whose `step` says how far the run has come."""


@dataclass(frozen=True)
class Budget:
    """What the restarts since the last progress add up to."""

    tries: int = 0
    """Restarts in a row, up to now, without a checkpoint or a finished step that no earlier one had reached."""
    useless: int = 0
    """Those of them that were neither a node's fault nor a preemption: a run may go through any number of these."""


def budget(events: Iterable[dict[str, Any]]) -> Budget:
    """Reads the ledger's events in order. Progress is a step beyond all earlier ones: a checkpoint's, or the last one that
    was finished before a restart. Steps that are done again after a rewind are progress again, and somebody who launches
    the run again gives it a new budget."""
    furthest, tries, useless = 0, 0, 0
    for event in events:
        name, step = event.get("event"), event.get("step")
        if name == "rewind":
            furthest = min(furthest, step or 0)
        progress = name in REACHED and isinstance(step, int) and step > furthest
        if progress:
            furthest = int(step or 0)
        if progress or (name == "restart" and event.get("reason") == "user"):
            tries, useless = 0, 0
        elif name == "restart":
            tries += 1
            useless += not (event.get("bad_nodes") or event.get("reason") == "preempt")
    return Budget(tries, useless)
