"""Paths and records of one run folder.

RUNS/NAME/
  config.yaml  plan.json  run.json     the resolved config; the plan; id, job, versions
  submit/                              batch script and submitit's files
  events.jsonl  metrics.jsonl          the ledger; one line per logged step
  validation.jsonl  stats.jsonl        one line per validation; norms by module, every so many steps
  attempts/000/                        one folder per start of the job: attempt.json, NODE.log, outcome.json
  checkpoints/step-00002000/           complete checkpoints; `latest` names the newest
  profiles/                            traces and memory snapshots, recorded on request: `touch RUN/profile`
  staging/NODE.json                    how far each node's copies of the data are, spares included; peers/ is how nodes meet
  excluded_nodes.json                  nodes that the run will not use again, and why
"""

import dataclasses
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.config.keys import convert
from harness.config.schema import RootConfig
from harness.config.yaml_text import YamlError, read_yaml
from harness.run.files import DamagedFile, read_json_lines, sample_json_lines, tail_json_lines, write_atomic, write_json
from harness.run.journal import journal, journals_in
from harness.run.records import is_event, is_step, is_validation, read_record, read_sound

LAST_KEY = "monitor.canary_seconds"
"""The last line of config.yaml: a file without it is cut short, and defaults would take the place of what is missing."""


class RunFolderError(Exception):
    """The run folder is missing, not writable or not one of ours; the message says which and what to do."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run. Creating the object touches nothing."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def record_path(self) -> Path:
        return self.path / "run.json"

    @property
    def submit_dir(self) -> Path:
        return self.path / "submit"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def validation_path(self) -> Path:
        return self.path / "validation.jsonl"

    @property
    def stats_path(self) -> Path:
        return self.path / "stats.jsonl"

    @property
    def profiles_dir(self) -> Path:
        return self.path / "profiles"

    @property
    def checkpoints_dir(self) -> Path:
        return self.path / "checkpoints"

    @property
    def attempts_dir(self) -> Path:
        return self.path / "attempts"

    @property
    def staging_dir(self) -> Path:
        return self.path / "staging"

    @property
    def excluded_path(self) -> Path:
        return self.path / "excluded_nodes.json"

    @property
    def calibration_path(self) -> Path:
        """What the run itself found to be its normal speed; kept so that a restart on a slow node is seen as slow."""
        return self.path / "calibration.json"

    def attempt_dir(self, attempt: int) -> Path:
        return self.attempts_dir / f"{attempt:03d}"

    def create(self) -> None:
        """Make the folder and its fixed subfolders. Raises RunFolderError where that can't be."""
        try:
            for folder in (self.path, self.submit_dir, self.attempts_dir, self.checkpoints_dir):
                folder.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunFolderError(
                f"runs_dir/run.name: can't write to {error.filename or self.path} ({error.strerror}); "
                "set runs_dir to a folder that you may write to and that every node sees"
            ) from error

    def writable(self) -> bool:
        """Whether a byte can be written here now: no full disk, no lost mount."""
        probe = self.path / f".room-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError:
            return False
        return True

    def save_config(self, config: RootConfig) -> None:
        """Write the resolved config."""
        write_atomic(self.config_path, OmegaConf.to_yaml(OmegaConf.structured(config), resolve=True))

    def load_config(self) -> RootConfig:
        """The config that the run was launched with. Raises RunFolderError if there is none or it can't be read."""
        problems: list[str] = []
        try:
            found = read_yaml(self.config_path)
            section, _, key = LAST_KEY.partition(".")
            if not isinstance(last := found.get(section), dict) or key not in last:
                problems.append(f"ends before {LAST_KEY}: it is cut short")
            values = convert(found, "", problems)
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RootConfig), values))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RunFolderError(f"{self.path} is not a run folder: it has no config.yaml") from error
        except (YamlError, OSError, OmegaConfBaseException, RecursionError) as error:
            said = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            raise self._config_damaged(problems or [said]) from error
        if problems:
            raise self._config_damaged(problems)
        assert isinstance(config, RootConfig)
        return config

    def _config_damaged(self, why: list[str]) -> RunFolderError:
        said = "; ".join(why).removeprefix(f"{self.config_path}: ")
        return RunFolderError(
            f"{self.config_path} can't be used: {said}. Restore it from a copy; or remove it and launch the run again with its "
            "overrides, which writes it anew and compares them with the checkpoints"
        )

    def record(self) -> dict[str, Any]:
        """run.json: run_id, job_id, submitted, versions; empty before the first submission, and while it is damaged, which
        `harness.run.damage` says."""
        try:
            return self.read_own_record()
        except (DamagedFile, OSError):
            return {}

    def read_own_record(self) -> dict[str, Any]:
        """`record`. Raises DamagedFile, or OSError if it can't be read."""
        found = read_record(self.record_path, dict[str, Any]) or {}
        job_id = found.get("job_id")
        if job_id is not None and not isinstance(job_id, str | int):
            raise DamagedFile(self.record_path, f"job_id: expected text, got {job_id!r}")
        return found if job_id is None else {**found, "job_id": str(job_id)}

    def update_record(self, **fields: Any) -> None:
        """Set fields of run.json, keeping the others."""
        write_json(self.record_path, {**self.record(), **fields})

    def excluded_nodes(self) -> dict[str, str]:
        """Node -> why the run will not use it again. While somebody's edit has left the file damaged: the last good list."""
        try:
            return read_record(self.excluded_path, dict[str, str]) or {}
        except (DamagedFile, OSError):
            return self._excluded_by_ledger()

    def _excluded_by_ledger(self) -> dict[str, str]:
        nodes: dict[str, str] = {}
        for event in self.events():
            if event["event"] == "submitted" and isinstance(event.get("excluded"), dict):
                nodes = {str(node): str(why) for node, why in event["excluded"].items()}
            elif event["event"] == "node_excluded":
                nodes[str(event.get("lost"))] = event.get("why") or ""
            elif event["event"] == "node_readmitted":
                nodes.pop(str(event.get("readmitted")), None)
        return nodes

    def exclude_node(self, node: str, why: str) -> bool:
        """Keep `node` out of the run from now on; False if it was already excluded. A damaged file, which somebody is about
        to mend, is left as it is: the ledger's `node_excluded`, which the caller writes, keeps the node out."""
        nodes = self.excluded_nodes()
        if node in nodes:
            return False
        self._write_excluded({**nodes, node: why})
        return True

    def readmit_node(self, node: str) -> None:
        """Let an excluded node back into the run."""
        nodes = self.excluded_nodes()
        if nodes.pop(node, None) is not None:
            self._write_excluded(nodes)

    def _write_excluded(self, nodes: dict[str, str]) -> None:
        try:
            read_record(self.excluded_path, dict[str, str])
        except (DamagedFile, OSError):
            return
        write_json(self.excluded_path, nodes)

    def measured_speed(self) -> float | None:
        """Tokens per second that the run itself found to be normal (calibration.json); None: not known."""
        found: Any = (read_sound(self.calibration_path, dict[str, Any]) or {}).get("tokens_per_second")
        number = isinstance(found, int | float) and not isinstance(found, bool)
        return float(found) if number and 0 < found < math.inf else None

    def attempts(self) -> list[int]:
        """Numbers of all attempts so far, ascending."""
        try:
            names = os.listdir(self.attempts_dir)
        except OSError:
            return []
        return sorted(int(name) for name in names if name.isascii() and name.isdecimal())

    def has_checkpoints(self) -> bool:
        """Whether the run has ever saved one that is still there, good or not."""
        return any(self.checkpoints_dir.glob("step-*"))

    def newest_attempt(self) -> int | None:
        """Number of the newest attempt; an older one that still runs must not write any more."""
        attempts = self.attempts()
        return attempts[-1] if attempts else None

    def ledger(self, attempt: int | None, node: str | None = None) -> "Ledger":
        return Ledger(self.events_path, attempt, node)

    def events(self) -> list[dict[str, Any]]:
        """The ledger's lines, each with `event` and `time`. Lines that are not whole are passed over, here and below."""
        return [line for line in read_json_lines(self.events_path) if is_event(line)]

    def metrics(self) -> list[dict[str, Any]]:
        """Every logged step. A long run has millions: `last_metrics` does not read them all."""
        return [line for line in read_json_lines(self.metrics_path) if is_step(line)]

    def validations(self) -> list[dict[str, Any]]:
        """Every validation so far: step, tokens, loss (None: not finite), seconds, time."""
        return [line for line in read_json_lines(self.validation_path) if is_validation(line)]

    def last_metrics(self, count: int) -> list[dict[str, Any]]:
        """The last logged steps, oldest first."""
        return [line for line in tail_json_lines(self.metrics_path, count) if is_step(line)]

    def sample_metrics(self, count: int) -> list[dict[str, Any]]:
        """At most `count` logged steps spread evenly over the run, and the last one."""
        return [line for line in sample_json_lines(self.metrics_path, count) if is_step(line)]

    def last_step(self) -> int:
        """The last logged step; 0 before the first."""
        return max((int(line["step"]) for line in self.last_metrics(3)), default=0)


@dataclass(frozen=True)
class Ledger:
    """Appends events to events.jsonl. Nothing here raises OSError: what can't be written now waits, see `harness.run.journal`."""

    path: Path
    attempt: int | None
    node: str | None = None

    def write(self, event: str, step: int | None = None, **fields: Any) -> bool:
        """One line: time, event, attempt, step, node, and whatever explains the event. False if it could not be written."""
        record = {"time": round(time.time(), 3), "event": event, "attempt": self.attempt, "step": step}
        if self.node is not None:
            record["node"] = self.node
        return journal(self.path).write({**record, **fields})

    def unwritten(self) -> list[dict[str, Any]]:
        """Events that this process could not write so far, oldest first: they are not in `RunFolder.events`."""
        return journal(self.path).unwritten()

    def catch_up(self, step: int | None = None) -> bool:
        """Try again to write this process's lines that wait, in any file of the run, and say which gaps are over (the event `disk_full`).

        Returns whether nothing waits any more. Costs nothing while nothing waits."""
        journals = journals_in(self.path.parent)
        done = [one.flush() for one in journals if one.waiting]
        for gap in [gap for one in journals for gap in one.take_gaps()]:
            why = f"{gap.path.name} could not be written: {gap.why}; {gap.late} lines were late, {gap.lost} are lost"
            times = {"since": round(gap.since, 3), "until": round(gap.until, 3)}
            self.write("disk_full", step, file=gap.path.name, late=gap.late, lost=gap.lost, **times, why=why)
        return all(done)


def find_run(name: str, runs_dir: Path) -> Path:
    """The folder that a command's RUN names: a run in `runs_dir`, or else a path. A folder of the same name that happens to
    lie where the command was typed does not hide the run."""
    inside = runs_dir / name
    return inside if ("/" not in name and inside.is_dir()) or not Path(name).is_dir() else Path(name)


def config_as_dict(config: RootConfig) -> dict[str, Any]:
    """Plain nested dict of the config, enums by value."""
    container = OmegaConf.to_container(OmegaConf.structured(config), resolve=True, enum_to_str=True)
    assert isinstance(container, dict) and dataclasses.is_dataclass(config)
    return {str(key): value for key, value in container.items()}
