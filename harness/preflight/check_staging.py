"""Looks at the disk that the run copies its data to, on this machine: can it be written, what fits, how long it takes."""

import os
from collections.abc import Iterator
from pathlib import Path

from harness.config.schema import ClusterKind, RootConfig, StageWhen
from harness.data.copies import mount_point
from harness.data.errors import DataError
from harness.data.origins import is_url
from harness.data.stage_estimate import Estimate, made_for
from harness.data.stage_plan import plan_files
from harness.preflight.check_storage import SLOW_BYTES_PER_SECOND, Speeds, existing_parent, probe
from harness.preflight.finding import Finding, Subject, skipped
from harness.text import bytes_text, duration_text

LONG_SECONDS = 4 * 3600.0
"""Longer than this is too long for GPUs that wait."""


def check_staging(subject: Subject) -> Finding:
    """Writes to data.stage_to and reads samples of the sources."""
    config = subject.config
    if config.data.stage_to is None:
        return skipped("data.stage_to=null: the data is read where it is")
    stage_to = Path(config.data.stage_to)
    folder = existing_parent(stage_to)
    try:
        files = plan_files(config.data, stage_to)
        speeds = probe(folder)
    except DataError as error:
        return Finding("the sources can't be listed", failures=tuple(str(error).splitlines()))
    except OSError as error:
        return Finding(
            f"can't write to {folder}",
            failures=(
                f"data.stage_to={stage_to}: can't write to {folder} ({error.strerror}); give a folder on a disk of the node's own "
                "that you may write to, or null",
            ),
        )
    if speeds is None:
        return Finding(
            f"{folder} gives back other bytes than were written",
            failures=(
                f"data.stage_to={stage_to}: {folder} gave back other bytes than were written to it: name another disk",
            ),
        )
    found = made_for(config.data, files)
    seconds = found.bytes_to_copy / min(found.bytes_per_second or speeds.write, speeds.write)
    return Finding(
        f"{bytes_text(found.bytes_to_copy)} of {bytes_text(found.bytes)} to copy to {stage_to}, {bytes_text(max(0, found.room))} "
        f"may be used there; about {duration_text(seconds)}; it writes {bytes_text(speeds.write)}/s, reads "
        f"{bytes_text(speeds.read)}/s{_where(config)}",
        failures=tuple(_failures(stage_to, found)),
        warnings=tuple(_warnings(config, folder, found, speeds, seconds)),
        facts={
            "bytes": found.bytes,
            "bytes_to_copy": found.bytes_to_copy,
            "room_bytes": found.room,
            "read_bytes_per_second": found.bytes_per_second,
            "write_bytes_per_second": speeds.write,
            "seconds": seconds,
        },
    )


def _where(config: RootConfig) -> str:
    on_node = config.cluster.kind is ClusterKind.local or "SLURM_STEP_ID" in os.environ
    return "" if on_node else ". That is this machine's disk: look at the nodes' with srun ... --only staging"


def _failures(stage_to: Path, found: Estimate) -> Iterator[str]:
    if found.bytes_to_copy and found.room <= 0:
        yield (
            f"data.stage_to={stage_to}: not one file fits, {bytes_text(found.missing)} are missing. Make room, name a larger disk, "
            "or lower data.stage_keep_free_bytes"
        )


def _warnings(config: RootConfig, folder: Path, found: Estimate, speeds: Speeds, seconds: float) -> Iterator[str]:
    data = config.data
    if found.missing > 0 and found.room > 0:
        yield (
            f"data.stage_to={data.stage_to}: {bytes_text(found.missing)} are missing: what does not fit is read where it is. Make "
            "room, name a larger disk, or lower data.stage_keep_free_bytes"
        )
    for name, source in data.sources.items():
        if not is_url(source.path) and mount_point(source.path) == mount_point(folder) != "/":
            yield (
                f"data.stage_to={data.stage_to}: is on the same file system as data.sources.{name}.path={source.path}, so a copy "
                "gains nothing. Name a disk of the node's own, or null"
            )
    if speeds.read < SLOW_BYTES_PER_SECOND:
        yield f"data.stage_to={data.stage_to}: reads only {bytes_text(speeds.read)}/s; name a faster disk"
    if data.stage_when is StageWhen.before and seconds > LONG_SECONDS:
        yield (
            f"data.stage_when=before: the nodes would wait about {duration_text(seconds)} before they train. Stage beforehand "
            "(python -m harness.data stage, on each node), or set data.stage_when=while_training"
        )
