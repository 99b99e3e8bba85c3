"""Names of checkpoint folders, which are complete, and removing old ones. Imports no torch.

checkpoints/step-00002000/             complete: it got this name after everything in it was on disk
checkpoints/.step-00002000.003.tmp/    being written by attempt 3, or left by a kill
checkpoints/latest                     name of the newest complete one
checkpoints/abandoned/attempt-003/     complete ones that attempt 3 went back behind; nothing reads them
"""

import contextlib
import os
import re
import shutil
from pathlib import Path

from harness.run.files import fsync_folder, write_atomic

COMPLETE = re.compile(r"step-(\d{8,})")
UNFINISHED = re.compile(r"\.step-\d{8,}\.[\w-]+\.tmp")
LATEST = "latest"
ABANDONED = "abandoned"


def complete_path(checkpoints: Path, step: int) -> Path:
    return checkpoints / f"step-{step:08d}"


def unfinished_path(checkpoints: Path, step: int, attempt: int) -> Path:
    return checkpoints / f".step-{step:08d}.{attempt:03d}.tmp"


def complete_steps(checkpoints: Path) -> list[int]:
    """Steps of the complete checkpoints, newest first; whether their files are still good is another question."""
    try:
        names = os.listdir(checkpoints)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted((int(found[1]) for name in names if (found := COMPLETE.fullmatch(name))), reverse=True)


def publish(unfinished: Path, checkpoints: Path, step: int) -> Path:
    """Give a finished folder its final name, which makes it a checkpoint, and point `latest` to it if there is room; one
    already there (found corrupt, and now made again) steps aside first. Raises OSError."""
    final = complete_path(checkpoints, step)
    fsync_folder(unfinished)
    if final.exists():
        _remove(final)
    os.rename(unfinished, final)
    fsync_folder(checkpoints)
    with contextlib.suppress(OSError):  # it is complete all the same
        point_latest(checkpoints, step)
    return final


def prune(checkpoints: Path, newest: int, keep: int | None, plateau_end: int | None = None) -> list[int]:
    """Remove complete checkpoints older than `newest`, which must be known to be good, but for `keep` - 1 of them and the
    last one up to step `plateau_end`: from there a longer run can train on without what the decay has done.

    Returns the steps removed; null keeps all."""
    if keep is None:
        return []
    steps = complete_steps(checkpoints)
    before_decay = next((step for step in steps if plateau_end is not None and step <= plateau_end), None)
    gone = [step for step in steps if step < newest][max(keep, 1) - 1 :]
    gone = [step for step in gone if step != before_decay]
    for step in gone:
        _remove(complete_path(checkpoints, step))
    return gone


def abandon(checkpoints: Path, steps: list[int], attempt: int, newest: int) -> Path:
    """Move complete checkpoints out of the run's way, after which `newest` is its newest; the folder that holds them.

    Raises OSError."""
    folder = checkpoints / ABANDONED / f"attempt-{attempt:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    for step in steps:
        source = complete_path(checkpoints, step)
        if not source.exists():  # an earlier try, which then failed, has moved it
            continue
        target, number = folder / source.name, 1
        while target.exists():  # the same attempt went back before
            number += 1
            target = folder / f"{source.name}.{number}"
        os.rename(source, target)
    fsync_folder(folder)
    fsync_folder(checkpoints)
    point_latest(checkpoints, newest)
    return folder


def remove_unfinished(checkpoints: Path) -> list[str]:
    """Remove what killed saves and removals have left. Only for the newest attempt, before it saves anything itself."""
    if not checkpoints.is_dir():
        return []
    names = [name for name in os.listdir(checkpoints) if UNFINISHED.fullmatch(name)]
    for name in names:
        shutil.rmtree(checkpoints / name, ignore_errors=True)
    return names


def point_latest(checkpoints: Path, step: int) -> None:
    """Let `latest` name the checkpoint of `step`, unless it does. Raises OSError."""
    path, content = checkpoints / LATEST, complete_path(checkpoints, step).name + "\n"
    with contextlib.suppress(OSError):
        if path.read_text(encoding="utf-8", errors="replace") == content:
            return
    write_atomic(path, content)


def _remove(folder: Path) -> None:
    """Rename first: a kill half-way must not leave half a checkpoint under the name of a complete one."""
    aside = folder.with_name(f".{folder.name}.removed.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)
