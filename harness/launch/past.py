"""What an earlier launch has left in the run folder, as far as this launch may rely on it."""

import time
from collections.abc import Callable

from harness import slurm
from harness.checkpoint.folders import complete_path
from harness.checkpoint.manifest import CorruptCheckpoint, Manifest, differences, identity
from harness.cluster import submit
from harness.config.schema import ClusterKind, RootConfig
from harness.launch.errors import LaunchError
from harness.run.attempt import read_outcome
from harness.run.damage import damages
from harness.run.folder import RunFolder
from harness.text import duration_text


def damage_notes(run: RunFolder) -> list[str]:
    """What is damaged and does not matter to a launch."""
    return [str(damage) for damage in damages(run) if not damage.refused]


def refuse_damage(run: RunFolder) -> None:
    """Raises LaunchError for files whose content would have to be guessed."""
    if problems := [str(damage) for damage in damages(run) if damage.refused]:
        raise LaunchError(problems)


def previous_config(run: RunFolder) -> RootConfig | None:
    """The config of the last launch; None: somebody has removed it. Raises RunFolderError if it is damaged."""
    return run.load_config() if run.config_path.exists() else None


def refuse_running(
    run: RunFolder, previous: RootConfig | None, wanted: ClusterKind, pending: Callable[[str], str] | None = None
) -> None:
    """Raises LaunchError if the job of the last launch is still there, or may be; SlurmError if Slurm does not answer.

    `pending` is called with the id of a job that waits, and says in what state that leaves it.
    """
    record = run.record()
    job_id = record.get("job_id")
    if job_id is None:
        return
    kind = previous.cluster.kind if previous else ClusterKind(record.get("cluster", ClusterKind.local))
    try:
        state = submit.is_active(run, kind, job_id)
    except slurm.NoClient as error:
        if wanted is ClusterKind.slurm:
            raise
        return _refuse_signs_of_life(run, job_id, previous, error)
    if state == "PENDING" and pending is not None:
        state = pending(job_id)
    if state:
        stop = f"scancel {job_id}" if kind is ClusterKind.slurm else f"kill {job_id}"
        raise LaunchError(
            [f"run.name={run.name}: already {state.lower()} as job {job_id}; follow it with `python -m harness.status {run.name}`, "
             f"end it with `{stop}`, or choose another run.name"]
        )  # fmt: skip


def _refuse_signs_of_life(run: RunFolder, job_id: str, previous: RootConfig | None, why: Exception) -> None:
    """A folder from a cluster, on a machine that can't ask it. A run that goes on writes within `cluster.hang_seconds`;
    should it start again all the same, the newer attempt fences it off."""
    newest = run.newest_attempt()
    outcome = read_outcome(run, newest) if newest is not None else None
    if outcome is not None and outcome.final:
        return
    limit = (previous or RootConfig()).cluster.hang_seconds
    last = max((line.get("time", 0.0) for line in [*run.events()[-1:], *run.last_metrics(1)]), default=0.0)
    silent = time.time() - last
    if silent < limit:
        raise LaunchError(
            [f"run.name={run.name}: Slurm job {job_id} wrote its last line {duration_text(max(0.0, silent))} ago and may still run; this "
             f"machine can't ask ({why}). End it where Slurm is (scancel {job_id}), and launch again {duration_text(limit)} after its "
             "last line; or choose another run.name"]
        )  # fmt: skip


def refuse_other_model(run: RunFolder, config: RootConfig, steps: list[int]) -> None:
    """For a run whose config.yaml is gone: raises LaunchError if its newest readable checkpoint is of another model."""
    for step in steps:
        try:
            saved = Manifest.read(complete_path(run.checkpoints_dir, step)).identity
        except CorruptCheckpoint:
            continue
        now = {key: value for key, value in identity(config, {}).items() if key in saved}
        if different := differences({key: saved[key] for key in now}, now):
            raise LaunchError(
                [f"run.name={run.name} has a checkpoint of step {step} that is of another model:", *different]
            )
        return
