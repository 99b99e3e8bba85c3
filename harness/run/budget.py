"""How long a run may go on restarting: as long as it gets further, and not by counting."""

from collections.abc import Iterable
from typing import Any


def restarts_without_progress(events: Iterable[dict[str, Any]]) -> int:
    """Restarts in a row, up to now, none of which came after a step that no earlier one had reached."""
    # each restart writes one event, whose `step` is the last finished step before it
    furthest, count = -1, 0
    for event in events:
        if event.get("event") == "rewind":  # the steps after this one are done again, and are progress again
            furthest = min(furthest, event.get("step") or 0)
        if event.get("event") != "restart":
            continue
        if event.get("reason") == "user":  # somebody has looked at it and launched it again
            count = 0
            continue
        step = event.get("step") or 0
        count = 0 if step > furthest else count + 1
        furthest = max(furthest, step)
    return count
