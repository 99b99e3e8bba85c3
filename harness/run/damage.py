"""Says which files of a run folder are damaged: cut short, edited wrongly, or something else than a file.

Readers carry on with what they can read (`harness.run.records`). What a launch must not guess is refused here.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.run.attempt import Attempt, Outcome
from harness.run.files import DamagedFile, count_bad_lines
from harness.run.folder import RunFolder
from harness.run.records import is_event, is_step, is_validation, read_record


@dataclass(frozen=True)
class Damage:
    """One file that is not what it should be."""

    path: Path
    why: str
    fix: str
    refused: bool
    """A launch would have to guess: it is refused."""

    def __str__(self) -> str:
        return f"{self.path}: {self.why}. {self.fix}"


def damages(run: RunFolder) -> list[Damage]:
    """All that is wrong with the run's own files but config.yaml, which `load_config` reads. Reads the whole ledger."""
    return [*_records(run), *_lines(run), *_places(run)]


def _records(run: RunFolder) -> Iterator[Damage]:
    job_over = "If no job of this run is queued or running, remove it; else restore it"
    list_fix = 'Write it as {"NODE": "why"}, with no comma after the last one, or remove it to use all nodes again'
    newest = run.newest_attempt()
    checks: list[tuple[Path, Callable[[], Any], str, bool]] = [
        (run.record_path, run.read_own_record, f"{job_over} from a copy", True),
        (run.excluded_path, lambda: read_record(run.excluded_path, dict[str, str]), list_fix, True),
        *((path, _reading(path, dict[str, Any]), "It is not used; remove it", False) for path in (run.calibration_path, run.plan_path)),
    ]  # fmt: skip
    if newest is not None:
        for name, kind in (("attempt.json", Attempt), ("outcome.json", Outcome)):
            path = run.attempt_dir(newest) / name
            checks.append((path, _reading(path, kind), "How that attempt ended is not known", False))
    for path, read, fix, refused in checks:
        try:
            read()
        except DamagedFile as error:
            yield Damage(path, error.why, fix, refused)
        except OSError as error:
            yield Damage(path, error.strerror or str(error), fix, refused)


def _reading(path: Path, kind: type) -> Callable[[], Any]:
    return lambda: read_record(path, kind)


def _lines(run: RunFolder) -> Iterator[Damage]:
    known = ((run.events_path, is_event), (run.metrics_path, is_step), (run.validation_path, is_validation))
    for path, sound in (*known, (run.stats_path, lambda line: True)):
        if path.is_symlink() and not path.exists():
            yield Damage(path, f"a link to {os.readlink(path)}, which does not exist", "Remove the link", True)
        elif path.exists() and not path.is_file():
            yield Damage(path, "not a file", "Move it away: the run appends lines to a file of that name", True)
        elif path.exists() and not os.access(path, os.R_OK | os.W_OK):
            yield Damage(path, "not yours to read and write", "Change its owner or its mode", True)
        elif path.exists() and path != run.metrics_path and (count := count_bad_lines(path, sound)):
            lines = f"{count:,} line{'s' * (count > 1)} can't be read"
            yield Damage(path, lines, "They are passed over; nothing needs to be done", False)


def _places(run: RunFolder) -> Iterator[Damage]:
    latest = run.checkpoints_dir / "latest"
    if latest.is_dir():
        yield Damage(latest, "a folder", "Remove it: the next checkpoint writes a file of that name", True)
