"""Numbers as people read them."""

import math


def bytes_text(size: float) -> str:
    """`36.9 GB`, decimal units."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def count_text(count: float) -> str:
    """`3.08 B`, `11.14 T`."""
    for unit, name in ((1e12, " T"), (1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.2f}{name}"
    return f"{count:.0f}"


def duration_text(seconds: float) -> str:
    """`24 d 8 h`, `3 h 20 min`, `4 min 10 s`, `12 s`."""
    if not math.isfinite(seconds):
        return "unknown time"
    whole = round(seconds)
    days, hours, minutes = whole // 86400, whole % 86400 // 3600, whole % 3600 // 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {whole % 60} s"
    return f"{whole} s"


def ago_text(seconds: float) -> str:
    """`12 s ago`."""
    return f"{duration_text(max(0.0, seconds))} ago"
