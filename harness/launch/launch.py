"""Launches one composed config: checks it against this machine and the run's past, and submits its job."""

import contextlib
import copy
import dataclasses
import fcntl
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from harness import slurm
from harness.checkpoint import rewind
from harness.cluster import submit
from harness.config.changes import changes, recorded, refused
from harness.config.schema import ClusterKind, RootConfig
from harness.data.check import check_sources
from harness.data.errors import DataError
from harness.data.lineage import how_to_change, lineage_of
from harness.data.order import SampleOrder, open_order, repeats
from harness.data.origins import is_url
from harness.data.packing import PackingMissing
from harness.data.stage import make_stage_folder
from harness.launch.errors import AlreadyFinished, LaunchError
from harness.launch.past import damage_notes, previous_config, refuse_damage, refuse_other_model, refuse_running
from harness.launch.record import config_hash, new_run_id, provenance
from harness.launch.starting import starting_problems, starting_remarks
from harness.optim.schedule import Curve
from harness.plan import Plan, make_plan, plan_as_dict
from harness.recovery.requeue import apply_exclusions
from harness.run.files import write_atomic, write_json
from harness.run.folder import RunFolder, RunFolderError, config_as_dict
from harness.train.validation import EarlyStop

MANY_REPEATS = 4
"""Times that a source is read through before the plan warns."""


@dataclass(frozen=True)
class Launched:
    """A job that has been submitted."""

    job_id: str
    run: RunFolder
    resumes_from: int | None
    """Step of the checkpoint that the run goes on from, None for a new run."""
    changed: dict[str, tuple[object, object]]
    """Config values that differ from the run's last launch."""


def run_folder(config: RootConfig) -> RunFolder:
    return RunFolder(Path(config.runs_dir).resolve() / config.run.name)


def plan_for(config: RootConfig) -> Plan:
    """The plan, with the speed that the run itself has measured where it has run before."""
    run = run_folder(config)
    choice = _checkpoints(config, run)
    plan = make_plan(config, run.measured_speed(), max(choice.usable, default=0))
    seen = _seen_data(config)
    often = {name: times for name, times in seen.get("repeats", {}).items() if times > MANY_REPEATS}
    notes = [
        *plan.warnings,
        *seen.pop("warnings", []),
        *map(_repeated, often.items()),
        *_not_used(config),
        *damage_notes(run),
        *_going_back(config, run, choice),
        *starting_remarks(config, run),
    ]
    return dataclasses.replace(plan, **seen, warnings=notes)


def _seen_data(config: RootConfig) -> dict[str, Any]:
    """What the plan says of the data; nothing where it can't be read."""
    try:
        order = _open_quietly(config)
    except PackingMissing as error:
        return {"warnings": [f"data.packing={config.data.packing}: {error}, and repeats are known then"]}
    except DataError:
        return {}  # `readiness` says what is wrong
    return {
        "repeats": repeats(order, config.train.steps),
        "wasted": {windows.source.name: windows.wasted for windows in order.windows},
        "warnings": order.warnings,
    }


def _open_quietly(config: RootConfig) -> SampleOrder:
    """The run's order, packed first where that is due and this is no dry run; nothing needs to be staged. Raises DataError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are shown in the plan
        return open_order(config.data, config.train.global_batch_size, build=not config.dry_run, outlines=True)


def _repeated(source: tuple[str, float]) -> str:
    name, times = source
    return (
        f"data.sources.{name} is read through {times:.3g} times: beyond about {MANY_REPEATS} a repeat teaches much less than "
        "new text; give more text, fewer train.steps or a smaller weight"
    )


def _not_used(config: RootConfig) -> list[str]:
    """Says which variables of the environment the job goes without."""
    variables = slurm.overruling() if config.cluster.kind is ClusterKind.slurm else []
    if not variables:
        return []
    return [
        f"{', '.join(variables)} in the environment: not used, since the config alone says what the job is like; set "
        "cluster.partition, cluster.account, cluster.time, ... or cluster.sbatch.FLAG"
    ]


def _checkpoints(config: RootConfig, run: RunFolder) -> rewind.Choice:
    return rewind.choose(run.checkpoints_dir, lineage_of(config), Curve.of(config))


def _going_back(config: RootConfig, run: RunFolder, choice: rewind.Choice) -> list[str]:
    """Says where a changed `train.skip`, `data.change_at` or schedule takes the run back to, and what its learning rate does."""
    target, curve = max(choice.usable, default=None), Curve.of(config)
    if target is None:
        return []
    changed = rewind.new_rate(run.checkpoints_dir, target, curve)
    notes = [changed] if changed else []
    if newer := [step for step in choice.passed_over if step > target]:
        accept = f"; to train on from step {newer[0]:,} instead, set {rewind.accept_jump(newer[0], curve)}"
        notes.append(
            f"{rewind.reason(choice, lineage_of(config), curve)}: the run goes back from step "
            f"{max(run.last_step(), *newer):,} to step {target:,}, its newest checkpoint "
            + ("with that past" if choice.disagreeing else f"from before the learning rate decayed{accept}")
        )
    return notes


def readiness(config: RootConfig) -> list[str]:
    """Problems that only this machine shows: data or checkpoints that are not there, Slurm that is not installed."""
    train = config.train
    problems = check_sources(config.data, config.model.vocab_size, train.eval_sequences if train.eval_every else 0)
    problems = problems or _order_problems(config)
    run = run_folder(config)
    choice = _checkpoints(config, run)
    if choice.passed_over and not choice.usable:
        problems.append(rewind.no_way_back(run.checkpoints_dir, choice, lineage_of(config), Curve.of(config)))
    if problem := rewind.other_order(run.checkpoints_dir, choice):
        problems.append(problem)
    problems += starting_problems(config, run, problems)
    if config.cluster.kind is ClusterKind.slurm:
        try:
            slurm.check_controller()
        except slurm.SlurmError as error:
            problems.append(f"cluster=slurm: {error}")
    elif config.data.stage_to is not None:  # the nodes' own disks are not ours to see
        try:
            make_stage_folder(Path(config.data.stage_to))
        except DataError as error:
            problems.append(str(error))
    return problems


def _order_problems(config: RootConfig) -> list[str]:
    """What of the mixture and the packing only shows once all files are opened."""
    try:
        _open_quietly(config)
    except PackingMissing:
        return []  # the plan says so
    except DataError as error:
        return [str(error)]
    return []


def launch(config: RootConfig, plan: Plan) -> Launched:
    """Submit the run's job. Raises LaunchError, AlreadyFinished, RunFolderError, SlurmError or SubmissionError."""
    make_paths_absolute(config)
    run = run_folder(config)
    run.create()
    with _launch_lock(run):
        changed = _check_against_past(config, run)
        problems = readiness(config)
        if problems:
            raise LaunchError(problems)
        resumes_from = max(_checkpoints(config, run).usable, default=None)
        record = run.record()
        values = config_as_dict(config)
        run.save_config(config)
        write_json(run.plan_path, plan_as_dict(plan))
        run.update_record(
            run_id=record.get("run_id") or new_run_id(run.name), cluster=config.cluster.kind.value, **provenance(values)
        )
        if config.cluster.kind is ClusterKind.slurm:
            write_atomic(run.submit_dir / "batch.sh", submit.batch_script(config, run))
        if changed:
            notes = rewind.new_rate(run.checkpoints_dir, resumes_from, Curve.of(config)) if resumes_from else None
            run.ledger(None).write(
                "config_change",
                step=resumes_from,
                changes={key: list(change) for key, change in changed.items()},
                **({"why": notes} if notes else {}),
            )
        job_id = submit.submit(config, run)
        run.update_record(job_id=job_id)
        excluded = run.excluded_nodes()
        kept_out = {"excluded": excluded} if excluded else {}  # the last good list, should an edit damage the file
        run.ledger(None).write(
            "submitted", step=resumes_from, job_id=job_id, config_hash=config_hash(values), **kept_out
        )
    return Launched(job_id, run, resumes_from, changed)


def refusal(config: RootConfig) -> list[str]:
    """Why a launch of this config would not go on with the run of its name; empty: it would. Writes nothing."""
    absolute = copy.deepcopy(config)
    make_paths_absolute(absolute)
    run = run_folder(absolute)
    try:
        _check_against_past(absolute, run, looks_only=True)
    except LaunchError as error:
        return error.problems
    except (AlreadyFinished, RunFolderError) as error:
        return [str(error)]
    except slurm.SlurmError:
        return []  # `readiness` says so
    return []


def make_paths_absolute(config: RootConfig) -> None:
    """The job, and a later launch from elsewhere, must find what is meant here and now."""

    def absolute(path: str) -> str:
        return str(Path(path).expanduser().absolute())

    config.runs_dir = absolute(config.runs_dir)
    config.monitor.targets_dir = absolute(config.monitor.targets_dir)
    config.data.packing_cache = absolute(config.data.packing_cache)
    for source in [*config.data.sources.values(), *config.data.validation.values()]:
        source.path = absolute(source.path) if source.path and not is_url(source.path) else source.path
    if config.data.stage_to:
        config.data.stage_to = absolute(config.data.stage_to)
    if config.data.tokenizer:
        config.data.tokenizer = absolute(config.data.tokenizer)
    if config.model.init_from:
        config.model.init_from = absolute(config.model.init_from)


@contextlib.contextmanager
def _launch_lock(run: RunFolder) -> Iterator[None]:
    """One launch of a run at a time; a second one is refused instead of waiting."""
    with open(run.path / ".launch.lock", "w") as f:
        try:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(
                [f"run.name={run.name}: another launch of this run is under way; wait for it or choose another name"]
            ) from error
        yield


def _check_against_past(
    config: RootConfig, run: RunFolder, looks_only: bool = False
) -> dict[str, tuple[object, object]]:
    """Refuses what would start a run twice or resume it as another one. Returns the changes worth recording."""
    refuse_damage(run)
    if not run.record():
        return {}
    previous = previous_config(run)
    pending = partial(_pending_with_edits, config, previous, run) if previous and not looks_only else None
    refuse_running(run, previous, config.cluster.kind, pending)
    choice = _checkpoints(config, run)
    if previous is None:
        refuse_other_model(run, config, choice.usable)
    differences = changes(config_as_dict(previous), config_as_dict(config)) if previous else {}
    if choice.usable or choice.passed_over:
        newest = max(choice.usable + choice.passed_over)
        problems = refused(differences)
        if problems:
            said = f"run.name={run.name} has trained to step {newest}, and these changes would make it another run; "
            if any(problem.startswith("data.stages") for problem in problems):
                next_batch = lineage_of(config).skips.batch_of_step(newest + 1)
                problems.append(how_to_change(next_batch, config.data.stages))
            raise LaunchError([said + "choose a new run.name:", *problems])
    if choice.usable:
        _refuse_finished(config, run, max(choice.usable))
    return recorded(differences)


def _pending_with_edits(config: RootConfig, previous: RootConfig, run: RunFolder, job_id: str) -> str:
    """Launching a pending run again applies what was edited in excluded_nodes.json and cluster.exclude."""
    if previous.cluster.exclude != config.cluster.exclude:
        previous.cluster.exclude = config.cluster.exclude
        run.save_config(previous)
    excluded = apply_exclusions(previous, run, job_id)
    return (
        "pending" if excluded is None else f"pending, and its excluded nodes are now {', '.join(excluded) or 'none'},"
    )


def _refuse_finished(config: RootConfig, run: RunFolder, step: int) -> None:
    """Raises AlreadyFinished where nothing follows after `step`."""
    train = config.train
    if step >= train.steps:
        raise AlreadyFinished(
            f"run {run.name} has finished all {train.steps:,} steps; raise train.steps, or choose another run.name"
        )
    losses = [line["loss"] for line in run.validations() if line["step"] <= step]
    early_stop = EarlyStop(train.early_stop_evals, losses)
    if early_stop.stops:
        raise AlreadyFinished(
            f"run {run.name} has finished early, after step {step:,} of {train.steps:,}: {early_stop.why}. To train on, raise "
            "train.early_stop_evals (0: never stop early), or choose another run.name"
        )
