"""Proves in small that the run survives losing all its processes: trains, kills, launches again, compares bit for bit."""

import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.checkpoint.folders import complete_steps
from harness.cluster import submit
from harness.config.schema import CheckpointConfig, Decay, MonitorMode, Precision, RootConfig, ScheduleConfig
from harness.launch.launch import LaunchError, launch, plan_for, run_folder
from harness.observe.nvml_library import visible_gpus
from harness.preflight import process_tree
from harness.preflight.finding import Finding, Subject
from harness.run.attempt import read_outcome
from harness.run.folder import RunFolder
from harness.verify.layouts import Case, small_layout
from harness.verify.shrink import placed, shrink
from harness.verify.tokens import write_tokens

EVERY_STEPS = 4
"""Steps between checkpoints of the small run."""
LOST_STEPS = 2
"""Steps after its newest checkpoint that a run must have done when it is killed: they are what is done again."""
ENDLESS = 100_000
"""Steps of the first start, which never gets there."""
MOST_SECONDS = 600.0
"""That a start may take to get to its checkpoint. On a GPU it compiles first."""
POLL_SECONDS = 0.02
TIDY_SECONDS = 5.0
"""What a run that is given up gets to remove what it has outside its folder."""
LAST_LINES = 15
"""Of what a failed start printed are shown."""
COMPARED = ("loss", "grad_norm", "lr")
"""Figures of a step that must be the same, to the last bit."""

Steps = dict[int, dict[str, Any]]


class _Failed(Exception):
    """What went wrong, as a sentence, and what the run printed."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


def check_resume(subject: Subject) -> Finding:
    """Real runs on this machine in a folder of their own, which is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="harness-preflight-") as folder:
        config, case = _small_run(subject.config, Path(folder))
        run = run_folder(config)
        where = f"{case.name} on {case.ranks} rank{'s' * (case.ranks > 1)}, {'GPU' if config.cluster.gpus_per_node else 'CPU'}"
        try:
            before = _train_and_kill(config, run)
            resumed_from = max(complete_steps(run.checkpoints_dir))
            config.train.steps = max(before)
            _train_to_the_end(config, run)
            after = _metrics(run)
            again = _resumed_from(run)
        except (_Failed, LaunchError, submit.SubmissionError, OSError) as error:
            return Finding(
                f"{where}: it did not get through",
                failures=(f"a small run of this config {error}",),
                detail=error.detail if isinstance(error, _Failed) else "",
            )
    done_again = [step for step in sorted(before) if step > resumed_from]
    wrong = differences(before, after, done_again)
    if again != resumed_from:
        wrong.insert(
            0, f"the second start went on from {again}, not from the newest checkpoint, that of step {resumed_from}"
        )
    steps = f"steps {done_again[0]}-{done_again[-1]}"
    outcome = "differ" if wrong else "the same to the last bit"
    return Finding(
        f"killed after step {max(before)}, resumed from the checkpoint of step {resumed_from}: {steps} {outcome} ({where})",
        failures=tuple(f"{text}: a run that is interrupted would become another one; report this" for text in wrong),
        facts={"killed_after": max(before), "resumed_from": again, "before": before, "after": after},
    )


def differences(before: Steps, after: Steps, steps: list[int]) -> list[str]:
    """What has become of the first of `steps` that is not the same before and after; nothing where all are."""
    for step in steps:
        if step not in after:
            return [f"step {step} was not done again"]
        for key in COMPARED:
            if before[step][key] is None:
                return [f"{key} of step {step} is not finite, so that nothing can be compared (see optim.lr)"]
            if before[step][key] != after[step][key]:
                return [f"{key} of step {step} was {before[step][key]!r} and is {after[step][key]!r} after the resume"]
    return []


def _small_run(config: RootConfig, folder: Path) -> tuple[RootConfig, Case]:
    """A small copy of the run for this machine, with its data written. It keeps how the run saves."""
    case = small_layout(config)
    on_gpu = config.cluster.gpus_per_node > 0 and visible_gpus() >= case.ranks
    exact = not on_gpu or config.train.precision is Precision.fp32
    # FP8 needs larger matrices; what is saved is fp32 in each
    small = placed(shrink(config, [case], Precision.fp32 if exact else Precision.bf16, on_gpu=on_gpu), case)
    small.runs_dir, small.run.name, small.dry_run, small.follow = str(folder / "runs"), "preflight", False, False
    small.cluster.time = "00:30:00"  # so that nothing is left for long of a preflight that is killed
    small.monitor.mode, small.monitor.targets_dir = MonitorMode.off, str(folder / "targets")
    small.monitor.expected_tokens_per_second = None
    small.data.sources["random"].path = str(folder / "tokens")
    write_tokens(folder / "tokens", small)
    # rates that do not depend on the number of steps, which differs between the two starts
    small.schedule = ScheduleConfig(decay=Decay.constant, decay_steps=0)
    small.train.steps, small.train.log_every, small.train.deterministic = (
        ENDLESS,
        1,
        config.train.deterministic or on_gpu,
    )
    small.checkpoint = CheckpointConfig(
        every_steps=EVERY_STEPS,
        keep=config.checkpoint.keep,
        async_save=config.checkpoint.async_save,
        verify=config.checkpoint.verify,
    )
    return small, case


def _train_and_kill(config: RootConfig, run: RunFolder) -> Steps:
    """Train until some steps follow the newest checkpoint, then kill everything. Returns the steps done by then."""
    job = launch(config, plan_for(config)).job_id
    try:
        while True:
            _wait(lambda: _is_ahead(run) or not _runs(config, job), run)
            if not _runs(config, job):
                raise _Failed(f"ended by itself before it was killed: {_why(run)}", _log(run))
            frozen = process_tree.freeze(int(job))  # so that what is seen below is what the kill finds
            if _is_ahead(run):
                process_tree.send(frozen, signal.SIGKILL)
                return _metrics(run)
            process_tree.send(frozen, signal.SIGCONT)
    finally:
        process_tree.end(int(job), TIDY_SECONDS)


def _train_to_the_end(config: RootConfig, run: RunFolder) -> None:
    job = launch(config, plan_for(config)).job_id
    try:
        _wait(lambda: not _runs(config, job), run)
    finally:
        process_tree.end(int(job), TIDY_SECONDS)
    outcome = read_outcome(run, run.newest_attempt() or 0)
    if outcome is None or outcome.state != "finished":
        raise _Failed(f"was launched again after a kill and did not finish: {_why(run)}", _log(run))


def _wait(condition: Callable[[], bool], run: RunFolder) -> None:
    """Until it holds. Raises _Failed after `MOST_SECONDS`, and once a checkpoint could not be saved."""
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        if failed := [event for event in run.events() if event["event"] == "checkpoint_failed"]:
            raise _Failed(
                f"could not save its checkpoint of step {failed[0]['step']}: {failed[0]['reason']}", _log(run)
            )
        if time.monotonic() > deadline:
            raise _Failed(f"did not come further than step {run.last_step()} within {MOST_SECONDS:.0f} s", _log(run))
        time.sleep(POLL_SECONDS)


def _runs(config: RootConfig, job: str) -> bool:
    return submit.is_active(run_folder(config), config.cluster.kind, job) is not None


def _is_ahead(run: RunFolder) -> bool:
    newest = max(complete_steps(run.checkpoints_dir), default=None)
    return newest is not None and run.last_step() >= newest + LOST_STEPS


def _metrics(run: RunFolder) -> Steps:
    return {line["step"]: {key: line[key] for key in COMPARED} for line in run.metrics()}


def _resumed_from(run: RunFolder) -> int | None:
    starts = [event for event in run.events() if event["event"] == "train_start"]
    return starts[-1].get("resumed_from") if starts else None


def _why(run: RunFolder) -> str:
    attempt = run.newest_attempt()
    outcome = read_outcome(run, attempt) if attempt is not None else None
    return outcome.why if outcome else "its agent left no word"


def _log(run: RunFolder) -> str:
    """The end of what the newest attempt printed, or of what its controller did where there is none."""
    attempt = run.newest_attempt()
    folder = run.submit_dir if attempt is None else run.attempt_dir(attempt)
    texts = [path.read_text(errors="replace") for path in sorted(folder.glob("*.log"))]
    return "\n".join("\n".join(texts).splitlines()[-LAST_LINES:])
