"""Gathers what is known of a run from its folder, the scheduler and Prometheus, and renders it."""

import statistics
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness import slurm
from harness.checkpoint.folders import complete_steps
from harness.cluster import submit
from harness.config.schema import RootConfig
from harness.launch.follow import event_line
from harness.monitor.client import Alert, PrometheusUnavailable, QueryError, connect
from harness.run.attempt import ending_text, load
from harness.run.damage import damages
from harness.run.folder import RunFolder
from harness.run.records import read_sound
from harness.status.disk import disk_problem
from harness.text import ago_text, count_text, duration_text

RECENT_STEPS = 20
RECENT_EVENTS = 8
CURVE_POINTS = 60
LATE_FACTOR = 20.0
"""Overdue steps after which a running job is said to stand still."""


@dataclass
class Status:
    """What the screen shows. None: not known."""

    run: RunFolder
    config: RootConfig
    state: str
    job_id: str | None
    step: int
    last_step_time: float | None
    tokens: int
    losses: list[float]
    """Of logged steps spread evenly over the run, the first and the last among them."""
    validations: list[dict[str, Any]]
    """As in validation.jsonl, those with a finite loss."""
    tokens_per_second: float | None
    expected_tokens_per_second: float | None
    checkpoint_step: int | None
    checkpoint_time: float | None
    restarts: dict[str, int]
    nodes: list[str]
    excluded: dict[str, str]
    down_nodes: list[str] | None
    alerts: list[str] | None
    verdict: str | None
    """Causes that firing alerts name, and where."""
    monitoring: str
    disk: str | None = None
    """What is wrong with the run folder's disk."""
    events: list[dict[str, Any]] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    """Files of the run that can't be read, and what to do."""

    @property
    def finished(self) -> bool:
        return self.state.startswith("finished")


def gather(run: RunFolder) -> Status:
    """Read everything. Raises RunFolderError where `run` is none; a scheduler or Prometheus that is away costs its lines."""
    config = run.load_config()
    metrics, events = run.last_metrics(RECENT_STEPS), run.events()
    last = metrics[-1] if metrics else {}
    newest = run.newest_attempt()
    attempt = load(run, newest) if newest is not None else None
    saved = [event for event in events if event["event"] == "checkpoint"]
    steps = complete_steps(run.checkpoints_dir)
    seen = _prometheus(run, config)
    restarts: dict[str, int] = {}
    for event in events:
        if event["event"] == "restart":
            reason = event.get("reason") or "unknown"
            restarts[reason] = restarts.get(reason, 0) + 1
    return Status(
        run=run,
        config=config,
        state=_state(run, config),
        job_id=run.record().get("job_id"),
        step=max([int(last.get("step", 0)), *steps]),
        last_step_time=last.get("time"),
        tokens=last.get("tokens") or 0,
        losses=[loss for line in run.sample_metrics(CURVE_POINTS) if (loss := line.get("loss")) is not None],
        validations=[record for record in run.validations() if record["loss"] is not None],
        tokens_per_second=_median([speed for line in metrics if (speed := line.get("tokens_per_second"))]),
        expected_tokens_per_second=config.monitor.expected_tokens_per_second or run.measured_speed(),
        checkpoint_step=max(steps, default=None),
        checkpoint_time=saved[-1]["time"] if saved else None,
        restarts=restarts,
        nodes=attempt.nodes if attempt else [],
        excluded=run.excluded_nodes(),
        down_nodes=seen.down_nodes,
        alerts=seen.alerts,
        verdict=", ".join(dict.fromkeys(seen.causes or [])) or None,
        monitoring=seen.where,
        disk=None if _state_is_over(events) else disk_problem(run.path, _checkpoint_bytes(run)),
        events=[event for event in events if event["event"] not in ("checkpoint", "agent_start")][-RECENT_EVENTS:],
        damages=[str(damage) for damage in damages(run)],
    )


def _state(run: RunFolder, config: RootConfig) -> str:
    """The scheduler's word while the job lives, the last attempt's outcome afterwards."""
    job_id = run.record().get("job_id")
    if job_id is None:
        return "not submitted"
    try:
        active = submit.is_active(run, config.cluster.kind, job_id)
    except slurm.SlurmError as error:
        return f"not known ({error})"
    if active == "PENDING":
        return _pending(run, job_id)
    return active.lower() if active else ending_text(run)


PENDING_REASONS = {
    "BadConstraints": "no allocation of this size is possible without the excluded nodes; edit excluded_nodes.json or "
    "cluster.exclude, then launch the run again",
    "BeginTime": "the next try follows after a wait",
    "Resources": "waiting for nodes",
    "Priority": "other jobs are ahead",
    "JobHeldUser": "held; release it with `scontrol release`",
    "JobHeldAdmin": "held by an administrator",
    "launch failed requeued held": "held after a failed start; release it with `scontrol release`",
}
"""Slurm's reasons in more words. Others are shown as they are."""


def _pending(run: RunFolder, job_id: str) -> str:
    """Why the job does not run, by Slurm's word and by ours."""
    found = slurm.ask(partial(slurm.job, job_id), seconds=0)
    reason = found.reason if found else ""
    parts = [f"pending ({reason}: {PENDING_REASONS[reason]})" if reason in PENDING_REASONS else f"pending ({reason})"]
    for event in reversed(run.events()):
        if event.get("event") in ("attempt_start", "submitted"):
            break
        if event.get("event") == "waiting":
            parts.append(str(event.get("why", "")))
            break
    return "; ".join(parts) if reason else "; ".join(["pending", *parts[1:]])


def _state_is_over(events: list[dict[str, Any]]) -> bool:
    """Whether the run has done all that it will ever write."""
    return any(event["event"] in ("finished", "early_stop") for event in events[-5:])


def _checkpoint_bytes(run: RunFolder) -> int | None:
    try:
        return int((read_sound(run.plan_path, dict[str, Any]) or {})["checkpoint_bytes"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None


@dataclass(frozen=True)
class _Seen:
    """What Prometheus says of the run; None where it does not answer."""

    where: str
    alerts: list[str] | None = None
    causes: list[str] | None = None
    down_nodes: list[str] | None = None


def _prometheus(run: RunFolder, config: RootConfig) -> _Seen:
    server = connect(Path(config.runs_dir))
    try:
        firing = [alert for alert in server.alerts(run.name) if alert.firing and alert.name != "HarnessWatchdog"]
        down = [target.labels.get("node", target.url) for target in server.targets(run.name) if target.health == "down"]
    except (PrometheusUnavailable, QueryError):
        fix = f"start it with `python -m harness.monitor up --runs-dir {config.runs_dir}`"
        return _Seen(f"no Prometheus at {server.url}; {fix}")
    causes = [f"{alert.labels['cause']}{_where(alert.labels)}" for alert in firing if alert.labels.get("cause")]
    return _Seen(server.url, [_alert_text(alert) for alert in firing], causes, down)


def _alert_text(alert: Alert) -> str:
    summary = alert.annotations.get("summary", "")
    return f"{alert.name}{_where(alert.labels)}: {summary} (since {alert.since[11:19]} UTC)"


def _where(labels: dict[str, str]) -> str:
    places = [labels[key] for key in ("node", "mount", "rank", "gpu") if labels.get(key)]
    return f" ({', '.join(places)})" if places else ""


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def render(status: Status, now: float | None = None) -> str:
    """The screen."""
    now = time.time() if now is None else now
    rows = [
        ("state", _state_text(status, now)),
        ("step", _step_text(status, now)),
        *((("loss", sparkline(status.losses)),) if len(status.losses) > 1 else ()),
        *((("validation", _validation_text(status)),) if status.validations else ()),
        ("speed", _speed_text(status)),
        ("checkpoint", _checkpoint_text(status, now)),
        *((("disk", status.disk),) if status.disk else ()),
        ("restarts", ", ".join(f"{count} x {reason}" for reason, count in sorted(status.restarts.items())) or "none"),
        ("nodes", _nodes_text(status)),
        ("alerts", "not known" if status.alerts is None else "none" if not status.alerts else status.alerts[0]),
        *(("", alert) for alert in (status.alerts or [])[1:]),
        *((("verdict", status.verdict),) if status.verdict else ()),
        ("monitor", status.monitoring),
        ("folder", str(status.run.path)),
        *(("damaged" if not number else "", text) for number, text in enumerate(status.damages)),
    ]
    lines = [f"{name:<11}{text}" for name, text in rows]
    recent = [f"  {event_line(event)}" for event in status.events]
    return "\n".join([f"Run {status.run.name}", *lines, *(["last events", *recent] if recent else [])])


def _state_text(status: Status, now: float) -> str:
    job = f" (job {status.job_id})" if status.job_id else ""
    late = ""
    if status.state == "running" and status.last_step_time and status.tokens_per_second:
        step_seconds = status.config.train.global_batch_size * status.config.data.seq_len / status.tokens_per_second
        silent = now - status.last_step_time
        if silent > LATE_FACTOR * step_seconds + 60:
            late = f"; STALLED: no step for {duration_text(silent)}"
    return f"{status.state}{job}{late}"


def _step_text(status: Status, now: float) -> str:
    steps = status.config.train.steps
    if not status.step:
        return f"0 of {steps:,}"
    text = f"{status.step:,} of {steps:,} ({status.step / steps:.1%}), {count_text(status.tokens)} tokens"
    if status.last_step_time and not status.finished:
        text += f", {ago_text(now - status.last_step_time)}"
    if status.tokens_per_second and not status.finished:
        left = (steps - status.step) * status.config.train.global_batch_size * status.config.data.seq_len
        text += f"; {duration_text(left / status.tokens_per_second)} left"
    return text


def sparkline(values: list[float]) -> str:
    """`8.32 █▇▅▃▂▁ 5.12`: first and last value around a bar for each."""
    low, span = min(values), (max(values) - min(values)) or 1.0
    bars = "".join("▁▂▃▄▅▆▇█"[round((value - low) / span * 7)] for value in values)
    return f"{values[0]:.4f} {bars} {values[-1]:.4f}"


def _validation_text(status: Status) -> str:
    last, best = status.validations[-1], min(status.validations, key=lambda record: float(record["loss"]))
    lowest = "the lowest so far" if best is last else f"the lowest was {best['loss']:.4f} at step {best['step']:,}"
    return f"{last['loss']:.4f} at step {last['step']:,}; {lowest}"


def _speed_text(status: Status) -> str:
    if status.tokens_per_second is None:
        return "not known yet"
    text = f"{status.tokens_per_second:,.0f} tokens/s (median of the last {RECENT_STEPS} logged steps)"
    if status.expected_tokens_per_second:
        share = status.tokens_per_second / status.expected_tokens_per_second
        text += f", {share:.0%} of the expected {status.expected_tokens_per_second:,.0f}"
    return text


def _checkpoint_text(status: Status, now: float) -> str:
    if status.checkpoint_step is None:
        return f"none yet; one every {status.config.checkpoint.every_steps:,} steps"
    when = f", {ago_text(now - status.checkpoint_time)}" if status.checkpoint_time else ""
    return f"step {status.checkpoint_step:,}{when}"


def _nodes_text(status: Status) -> str:
    text = ", ".join(status.nodes) or "none yet"
    if status.down_nodes:
        text += f"; not answering: {', '.join(status.down_nodes)}"
    for node, why in status.excluded.items():
        text += f"; excluded: {node} ({why})"
    return text
