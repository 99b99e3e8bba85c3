"""What an agent writes into the targets folder, checked: everything in that folder may be written by any user of the run."""

import json
import re
from dataclasses import dataclass
from typing import Any

LABELS = ("run", "attempt", "slurm_job_id", "node")
"""The only labels that a registration may set. Others could redirect Prometheus (`__address__`, `__scheme__`) or pass
for another job's series (`job`)."""
MAX_BYTES = 64 * 1024
LATEST_LEASE = 1e11
"""Unix seconds; no clock says so."""
TARGET = re.compile(r"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")


@dataclass(frozen=True)
class Registration:
    """`targets` are host:port (none: withdrawn); `lease` is the Unix time of the last renewal by the node's own clock."""

    targets: tuple[str, ...]
    labels: dict[str, str]
    lease: float

    @property
    def title(self) -> str:
        return f"run {self.labels['run']}, attempt {self.labels['attempt']}, node {self.labels['node']}"


def parse_registration(content: bytes) -> Registration:
    """Raises ValueError that says what is wrong."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(record, dict):
        raise ValueError("no JSON object")
    lease = record.get("lease")
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not abs(lease) < LATEST_LEASE:
        raise ValueError(f"lease is {lease!r}; a Unix time is needed")
    return Registration(_targets(record.get("targets")), _labels(record.get("labels")), float(lease))


def _targets(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"targets is {value!r}; a list of host:port is needed")
    for target in value:
        match = TARGET.fullmatch(target) if isinstance(target, str) else None
        if match is None or not 0 < int(match[1]) < 65536:
            raise ValueError(f"target {target!r} is not host:port")
    return tuple(value)


def _labels(value: Any) -> dict[str, str]:
    if not isinstance(value, dict):
        raise ValueError(f"labels is {value!r}; an object is needed")
    if unknown := sorted(set(value) - set(LABELS)):
        raise ValueError(f"unknown labels {unknown}; only {list(LABELS)} may be set")
    for name in LABELS:
        if not isinstance(value.get(name), str):
            raise ValueError(f"label {name} is {value.get(name)!r}; a string is needed")
    for name in ("run", "attempt", "node"):
        if not value[name]:
            raise ValueError(f"label {name} is empty")
    return dict(value)
